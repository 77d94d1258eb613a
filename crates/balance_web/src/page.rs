//! The page, and what a browser may do with it.

/// The page. It needs no other file.
pub(crate) const PAGE: &str = include_str!("page.html");

/// What the page may do: run its own script, use its own style, and ask this server. The hashes are those
/// of the text within `script` and `style`:
///
/// ```text
/// perl -0ne 'print $1 if m|<script>(.*)</script>|s' page.html | openssl dgst -sha256 -binary | base64
/// ```
///
/// With a wrong one, the page stays empty, which the test in a browser notices.
pub(crate) const POLICY: &str = "default-src 'none'; script-src 'sha256-eQ8ZIOIYauJxNdQrFP+copyYXfr/2o4kPObYGPkUIMc='; \
style-src 'sha256-u6CxzUHGgt2low0o444NXp6Cw389Pvq9EPo2BIWBrLo='; connect-src 'self'; img-src data:; \
base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_page_needs_no_other_file_and_makes_no_markup_of_texts() {
        for word in
            ["http:", "https:", "src=", "@import", "url(", "innerHTML", "insertAdjacent", "eval("]
        {
            assert!(!PAGE.contains(word), "{word}");
        }
        assert_eq!(PAGE.matches("<script").count(), 1);
        assert_eq!(PAGE.matches("<style").count(), 1);
        assert!(PAGE.contains("width=device-width") && PAGE.contains("prefers-color-scheme: dark"));
    }
}
