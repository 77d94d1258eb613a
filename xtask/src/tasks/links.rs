//! The links in the project's documents lead somewhere. A part of `cargo xtask lint`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use pulldown_cmark::{Event, Parser, Tag, TagEnd};

use crate::workspace;

/// A finding for each link to a missing file or heading. Links to other sites are not checked.
pub(super) fn check() -> Result<Vec<String>> {
    let documents = documents()?;
    let mut findings = Vec::new();
    for (path, document) in &documents {
        for link in &document.links {
            if let Some(fault) = broken(path, link, &documents) {
                let path = path.strip_prefix(workspace::root()).unwrap_or(path);
                findings.push(format!("{}: {link}: {fault}", path.display()));
            }
        }
    }
    Ok(findings)
}

#[derive(Debug, Default)]
struct Document {
    links: Vec<String>,
    anchors: Vec<String>,
}

impl Document {
    fn parse(text: &str) -> Self {
        let mut document = Self::default();
        let mut heading: Option<String> = None;
        for event in Parser::new(text) {
            match event {
                Event::Start(Tag::Link { dest_url, .. } | Tag::Image { dest_url, .. }) => {
                    document.links.push(dest_url.into_string());
                }
                Event::Start(Tag::Heading { .. }) => heading = Some(String::new()),
                Event::End(TagEnd::Heading(_)) => {
                    document.anchors.extend(heading.take().as_deref().map(anchor));
                }
                Event::Text(text) | Event::Code(text) => {
                    if let Some(heading) = &mut heading {
                        heading.push_str(&text);
                    }
                }
                _ => {}
            }
        }
        document
    }
}

/// The anchor of a heading, in GitHub's form.
fn anchor(heading: &str) -> String {
    let kept = heading.chars().filter(|c| c.is_alphanumeric() || "-_ ".contains(*c));
    kept.collect::<String>().to_lowercase().replace(' ', "-")
}

fn broken(from: &Path, link: &str, documents: &BTreeMap<PathBuf, Document>) -> Option<String> {
    if link.contains("://") || link.starts_with("mailto:") {
        return None;
    }
    let (file, anchor) = link.split_once('#').map_or((link, None), |(f, a)| (f, Some(a)));
    let target = if file.is_empty() {
        from.to_owned()
    } else {
        let target = from.parent()?.join(file);
        match target.canonicalize() {
            Ok(target) => target,
            Err(_) => return Some("there is no such file".to_owned()),
        }
    };
    let anchor = anchor?;
    let document = documents.get(&target)?;
    let is_there = document.anchors.iter().any(|there| there == anchor);
    (!is_there).then(|| "there is no such heading".to_owned())
}

/// All documents in version control.
fn documents() -> Result<BTreeMap<PathBuf, Document>> {
    let root = workspace::root().canonicalize()?;
    let mut documents = BTreeMap::new();
    for path in workspace::files("*.md")? {
        let path = root.join(path);
        let text = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
        documents.insert(path, Document::parse(&text));
    }
    Ok(documents)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_in_text_count_and_those_in_code_do_not() {
        let text =
            "# A `b` C!\n\n[a](b.md#c), `[d](e)`\n\n```\n[f](g)\n```\n\n[h][i]\n\n[i]: j.md\n";
        let document = Document::parse(text);
        assert_eq!(document.links, ["b.md#c", "j.md"]);
        assert_eq!(document.anchors, ["a-b-c"]);
    }

    #[test]
    fn links_to_what_is_not_there_are_found() {
        let dir = tempfile::tempdir().unwrap();
        let dir = dir.path().canonicalize().unwrap();
        fs::write(dir.join("other.md"), "").unwrap();
        let there = Document::parse("# One two");
        let documents = BTreeMap::from([(dir.join("other.md"), there)]);
        let from = dir.join("this.md");
        for good in ["other.md", "other.md#one-two", "https://example.com/x", "./other.md"] {
            assert_eq!(broken(&from, good, &documents), None, "{good}");
        }
        assert_eq!(broken(&from, "none.md", &documents).as_deref(), Some("there is no such file"));
        let no_heading = broken(&from, "other.md#three", &documents);
        assert_eq!(no_heading.as_deref(), Some("there is no such heading"));
    }
}
