//! Where to listen.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::str::FromStr;

/// An address to listen on, as the user gives it: `PORT`, `localhost:PORT`, or an IP address with a port.
/// A port alone is on the loopback interface.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Listen(SocketAddr);

/// A text that is no address.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid address '{0}': give a port, or an IP address and a port as in 127.0.0.1:9178 or [::1]:9178")]
pub struct BadAddress(String);

impl Listen {
    /// The address.
    #[must_use]
    pub const fn address(self) -> SocketAddr {
        self.0
    }

    /// Whether only this host can reach it.
    #[must_use]
    pub fn is_loopback(self) -> bool {
        is_loopback(self.0.ip())
    }
}

impl FromStr for Listen {
    type Err = BadAddress;

    fn from_str(text: &str) -> Result<Self, BadAddress> {
        let bad = || BadAddress(text.to_owned());
        // Numbers with a sign are none here.
        let port = |text: &str| match text.bytes().all(|byte| byte.is_ascii_digit()) {
            true => text.parse().map_err(|_| bad()),
            false => Err(bad()),
        };
        let local = |port: u16| Self(SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        if let Some(text) = text.strip_prefix("localhost:") {
            return port(text).map(local);
        }
        match text.parse() {
            Ok(address) => Ok(Self(address)),
            Err(_) => port(text).map(local),
        }
    }
}

pub(crate) fn is_loopback(address: IpAddr) -> bool {
    address.to_canonical().is_loopback()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_port_alone_is_on_loopback() {
        let address = |text: &str| text.parse::<Listen>().map(|l| (l.0.to_string(), l.is_loopback()));
        for (text, expected, local) in [
            ("9178", "127.0.0.1:9178", true),
            ("localhost:0", "127.0.0.1:0", true),
            ("127.9.9.9:1", "127.9.9.9:1", true),
            ("[::1]:1", "[::1]:1", true),
            ("[::ffff:127.0.0.1]:1", "[::ffff:127.0.0.1]:1", true),
            ("0.0.0.0:80", "0.0.0.0:80", false),
            ("[::]:80", "[::]:80", false),
            ("192.0.2.1:80", "192.0.2.1:80", false),
        ] {
            assert_eq!(address(text), Ok((expected.to_owned(), local)));
        }
        for text in ["", ":", "x", "65536", "+1", "-1", "example.org:80", "127.0.0.1", "::1:", "localhost:", "localhost"] {
            let error = text.parse::<Listen>().unwrap_err().to_string();
            assert!(error.starts_with(&format!("invalid address '{text}': give a port")), "{error}");
        }
    }
}
