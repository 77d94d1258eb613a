//! The secret without which nothing is served to other hosts.

use std::fmt;
use std::fs;
use std::io;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use subtle::ConstantTimeEq;

/// The fewest characters of a token: 96 bits, if they are chosen at random from 64.
const SHORTEST: usize = 16;

/// The most characters. Longer headers are refused anyway.
const LONGEST: usize = 1024;

/// A secret that clients must give.
#[derive(Clone, PartialEq, Eq)]
pub struct Token(String);

/// A file that has no token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    /// The file cannot be read.
    #[error("{}: cannot read the token: {source}", .file.display())]
    Read {
        /// The file.
        file: PathBuf,
        /// The cause.
        source: io::Error,
    },
    /// Anybody can read the file.
    #[error("{}: other users can read the token: chmod 600 it", .file.display())]
    Public {
        /// The file.
        file: PathBuf,
    },
    /// What is in the file is no token.
    #[error(
        "{}: a token has {SHORTEST} to {LONGEST} visible ASCII characters in one line: openssl rand -base64 24 makes one",
        .file.display()
    )]
    Form {
        /// The file.
        file: PathBuf,
    },
}

impl fmt::Debug for Token {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Token(…)")
    }
}

impl Token {
    /// Reads the token from a file. Spaces and line ends around it do not count.
    ///
    /// # Errors
    /// The file cannot be read, can be read by everybody, or has no token.
    pub fn read(file: &Path) -> Result<Self, TokenError> {
        let fail = |source| TokenError::Read { file: file.to_owned(), source };
        let data = fs::metadata(file).map_err(fail)?;
        if data.mode() & 0o004 != 0 {
            return Err(TokenError::Public { file: file.to_owned() });
        }
        // Of a device or a large file, no more than could be a token.
        let text = read_some(file).map_err(fail)?;
        Self::parse(&text).ok_or_else(|| TokenError::Form { file: file.to_owned() })
    }

    fn parse(text: &str) -> Option<Self> {
        let text = text.trim();
        let is_token = (SHORTEST..=LONGEST).contains(&text.len())
            && text.bytes().all(|byte| byte.is_ascii_graphic());
        is_token.then(|| Self(text.to_owned()))
    }

    /// Whether the value of an `Authorization` header has the token: as bearer token, or as the password
    /// of any user, which is what a browser asks for. How long the comparison takes tells the token's
    /// length and nothing else.
    pub(crate) fn is_in(&self, authorization: Option<&[u8]>) -> bool {
        authorization.and_then(secret).is_some_and(|given| self.0.as_bytes().ct_eq(&given).into())
    }
}

fn read_some(file: &Path) -> io::Result<String> {
    use std::io::Read;
    let mut text = String::new();
    let limit = u64::try_from(2 * LONGEST).unwrap_or(u64::MAX);
    fs::File::open(file)?.take(limit).read_to_string(&mut text)?;
    Ok(text)
}

/// The secret in the value of an `Authorization` header.
fn secret(authorization: &[u8]) -> Option<Vec<u8>> {
    let place = authorization.iter().position(|byte| *byte == b' ')?;
    let (scheme, rest) = authorization.split_at(place);
    let rest = rest.trim_ascii();
    if scheme.eq_ignore_ascii_case(b"bearer") {
        return Some(rest.to_vec());
    }
    if scheme.eq_ignore_ascii_case(b"basic") {
        let both = STANDARD.decode(rest).ok()?;
        let colon = both.iter().position(|byte| *byte == b':')?;
        return both.get(colon + 1..).map(<[u8]>::to_vec);
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    const SECRET: &str = "correct-horse-battery";

    #[test]
    fn only_the_token_opens() {
        let token = Token::parse(SECRET).unwrap();
        let is_in = |header: &str| token.is_in(Some(header.as_bytes()));
        let basic = |text: &str| format!("Basic {}", STANDARD.encode(text));
        for header in [
            format!("Bearer {SECRET}"),
            format!("bearer  {SECRET} "),
            basic(&format!("me:{SECRET}")),
            basic(&format!(":{SECRET}")),
        ] {
            assert!(is_in(&header), "{header}");
        }
        for header in [
            String::new(),
            "Bearer".to_owned(),
            "Bearer ".to_owned(),
            SECRET.to_owned(),
            format!("Bearer {SECRET}x"),
            format!("Bearer {}", &SECRET[1..]),
            format!("Digest {SECRET}"),
            basic(SECRET),
            basic(&format!("me:{SECRET}:")),
            basic("me:"),
            format!("Basic me:{SECRET}"),
            format!("Basic {}", "=".repeat(100)),
        ] {
            assert!(!is_in(&header), "{header}");
        }
        assert!(!token.is_in(None));
        assert!(!token.is_in(Some(b"Bearer \xff\xfe")));
        assert_eq!(format!("{token:?}"), "Token(…)");
    }

    #[test]
    fn a_file_that_has_no_token_is_refused_with_the_remedy() {
        let place = tempfile::tempdir().unwrap();
        let file = place.path().join("token");
        let read = |text: &str, mode| {
            fs::write(&file, text).unwrap();
            fs::set_permissions(&file, PermissionsExt::from_mode(mode)).unwrap();
            Token::read(&file).map_err(|error| error.to_string())
        };
        assert_eq!(read(&format!(" {SECRET}\n"), 0o640), Ok(Token(SECRET.to_owned())));
        assert!(read(SECRET, 0o644).unwrap_err().contains("chmod 600"));
        for text in [
            "",
            "short",
            "fifteen-letters",
            "two words of a line",
            "zwölf-Buchstaben-oder",
            &"x".repeat(5000),
        ] {
            assert!(read(text, 0o600).unwrap_err().contains("openssl rand"), "{text}");
        }
        let error = Token::read(&place.path().join("none")).unwrap_err().to_string();
        assert!(error.contains("none: cannot read the token: No such file"), "{error}");
    }
}
