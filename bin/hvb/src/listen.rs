//! Addresses to listen on.

use std::net::{Ipv4Addr, SocketAddr};

/// The address that an option means: a port alone is on the loopback interface.
pub(crate) fn address(text: &str) -> Result<SocketAddr, String> {
    let local = |text: &str| Some(SocketAddr::from((Ipv4Addr::LOCALHOST, port(text)?)));
    let named = text.strip_prefix("localhost:").unwrap_or(text);
    local(named).or_else(|| text.parse().ok()).ok_or_else(|| {
        format!(
            "invalid address '{text}': give a port, or an IP address and a port as in \
             127.0.0.1:9178 or [::1]:9178"
        )
    })
}

fn port(text: &str) -> Option<u16> {
    // A number with a sign is none here.
    text.bytes().all(|byte| byte.is_ascii_digit()).then(|| text.parse().ok()).flatten()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_alone_is_on_loopback() {
        for (text, expected) in [
            ("9178", "127.0.0.1:9178"),
            ("localhost:0", "127.0.0.1:0"),
            ("127.9.9.9:1", "127.9.9.9:1"),
            ("[::1]:1", "[::1]:1"),
            ("0.0.0.0:80", "0.0.0.0:80"),
            ("[::]:80", "[::]:80"),
        ] {
            assert_eq!(address(text).map(|address| address.to_string()), Ok(expected.to_owned()));
        }
        let bad = ["", ":", "x", "65536", "+1", "-1", "example.org:80", "127.0.0.1", "::1:"];
        for text in bad.into_iter().chain(["localhost:", "localhost", "localhost:+1"]) {
            let error = address(text).unwrap_err();
            assert!(
                error.starts_with(&format!("invalid address '{text}': give a port")),
                "{error}"
            );
        }
    }
}
