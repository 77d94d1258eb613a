//! Who is served.

use std::net::IpAddr;

use hyper::header::{AUTHORIZATION, HOST, HeaderMap};

use crate::token::Token;

/// What is asked of each request.
#[derive(Clone, Debug)]
pub(crate) enum Gate {
    /// Only this host can connect. A browser on it may be asked by a page of anybody, under a name that
    /// leads here, so names other than this host's own are refused.
    Local,
    /// Whoever has the token.
    Token(Token),
}

/// Why a request is refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Refusal {
    /// It has not the token.
    Token,
    /// It is for another name.
    Host,
    /// A page of another origin asks.
    Origin,
}

impl Refusal {
    pub(crate) const fn text(self) -> &'static str {
        match self {
            Self::Token => {
                "give the token: Authorization: Bearer TOKEN, or as the password of any user\n"
            }
            Self::Host => {
                "this is served as localhost, 127.0.0.1 or [::1] only: for other names use --listen-token-file\n"
            }
            Self::Origin => "this is not served to pages of other origins\n",
        }
    }
}

impl Gate {
    pub(crate) fn check(&self, headers: &HeaderMap) -> Result<(), Refusal> {
        match self {
            Self::Token(token) => {
                let given = headers.get(AUTHORIZATION).map(|value| value.as_bytes());
                if !token.is_in(given) {
                    return Err(Refusal::Token);
                }
            }
            Self::Local => {
                let mut hosts = headers.get_all(HOST).iter();
                let host = hosts.next().and_then(|host| host.to_str().ok());
                if hosts.next().is_some() || !host.is_some_and(is_own_name) {
                    return Err(Refusal::Host);
                }
            }
        }
        // Browsers say so. Such a page could not read the answer, but take all places for streams.
        let header = |name| headers.get(name).map(hyper::header::HeaderValue::as_bytes);
        let is_foreign = header("sec-fetch-site") == Some(b"cross-site");
        if is_foreign && header("sec-fetch-mode") != Some(b"navigate") {
            return Err(Refusal::Origin);
        }
        Ok(())
    }
}

/// Whether the value of a `Host` header names this host as only itself can be named. The port does not
/// matter: a tunnel may have another.
fn is_own_name(host: &str) -> bool {
    let is_port = |text: &str| text.bytes().all(|byte| byte.is_ascii_digit());
    // Colons before the port are those of an address, which then is in brackets.
    let is_name = |name: &str| name.ends_with(']') || !name.contains(':');
    let name = match host.rsplit_once(':') {
        Some((name, port)) if is_port(port) && is_name(name) => name,
        _ => host,
    };
    if name.eq_ignore_ascii_case("localhost") {
        return true;
    }
    let address = name.strip_prefix('[').and_then(|name| name.strip_suffix(']'));
    match address {
        Some(address) => address.parse().is_ok_and(|address| is_loopback(IpAddr::V6(address))),
        None => name.parse().is_ok_and(|address| is_loopback(IpAddr::V4(address))),
    }
}

/// Whether only this host can reach the address.
pub(crate) fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut headers = HeaderMap::new();
        for (name, value) in pairs {
            headers.append(*name, value.parse().unwrap());
        }
        headers
    }

    #[test]
    fn names_that_could_be_anybodys_are_refused() {
        let check = |host: &str| Gate::Local.check(&headers(&[("host", host)]));
        for host in [
            "localhost",
            "LOCALHOST:80",
            "127.0.0.1:9178",
            "127.1.2.3",
            "[::1]:80",
            "[::1]",
            "localhost:",
        ] {
            assert_eq!(check(host), Ok(()), "{host}");
        }
        for host in [
            "",
            "evil.example",
            "localhost.evil.example",
            "127.0.0.1.evil.example:80",
            "192.0.2.1",
            "::1",
            "[::2]:80",
            "127.1",
            "0x7f.0.0.1",
            "localhost:80:80",
            "user@localhost",
            "[127.0.0.1]",
        ] {
            assert_eq!(check(host), Err(Refusal::Host), "{host}");
        }
        assert_eq!(Gate::Local.check(&HeaderMap::new()), Err(Refusal::Host));
        let two = headers(&[("host", "localhost"), ("host", "evil.example")]);
        assert_eq!(Gate::Local.check(&two), Err(Refusal::Host));
    }

    #[test]
    fn pages_of_others_are_refused_and_links_are_not() {
        let check = |site, mode| {
            let pairs = [("host", "localhost"), ("sec-fetch-site", site), ("sec-fetch-mode", mode)];
            Gate::Local.check(&headers(&pairs))
        };
        assert_eq!(check("same-origin", "cors"), Ok(()));
        assert_eq!(check("none", "navigate"), Ok(()));
        assert_eq!(check("cross-site", "navigate"), Ok(()));
        assert_eq!(check("cross-site", "cors"), Err(Refusal::Origin));
        assert_eq!(check("cross-site", "no-cors"), Err(Refusal::Origin));
    }
}
