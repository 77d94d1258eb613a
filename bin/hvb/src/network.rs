//! `--net`: the text of the option.

use vmm::{LinkConfig, NetConfig, UseVhost};

use crate::disk::split;

/// Reads `passt[=SOCKET]`, `tap=NAME` or `tap-fd=N`, followed by `,mac=MAC` and `,vhost=on|off|auto` if
/// need be. A comma in a name is written twice.
pub(crate) fn parse(text: &str) -> Result<NetConfig, String> {
    let mut parts = split(text).into_iter();
    let link = parts.next().unwrap_or_default();
    let link = match link.split_once('=') {
        None if link == "passt" => LinkConfig::Passt(None),
        Some(("passt", "")) => return Err("passt= names no socket".to_owned()),
        Some(("passt", socket)) => LinkConfig::Passt(Some(socket.into())),
        Some(("tap", name)) if is_interface(name) => LinkConfig::Tap(name.to_owned()),
        Some(("tap", name)) => {
            return Err(format!("'{name}' is no name of an interface: it has 1 to 15 characters"));
        }
        Some(("tap-fd", number)) => LinkConfig::TapFd(descriptor(number)?),
        _ => {
            let forms = "passt, passt=SOCKET, tap=NAME or tap-fd=NUMBER";
            return Err(format!("{link} is not known: give {forms}"));
        }
    };
    let mut network = NetConfig { link, mac: None, vhost: UseVhost::Auto };
    for part in parts {
        match part.split_once('=') {
            Some(("mac", mac)) => network.mac = Some(mac.parse()?),
            Some(("vhost", "on")) => network.vhost = UseVhost::On,
            Some(("vhost", "off")) => network.vhost = UseVhost::Off,
            Some(("vhost", "auto")) => network.vhost = UseVhost::Auto,
            _ => {
                return Err(format!(
                    "{part} is not known: there are mac=MAC and vhost=on, off or auto"
                ));
            }
        }
    }
    Ok(network)
}

/// Whether Linux takes a name for a network interface (`dev_valid_name`).
fn is_interface(name: &str) -> bool {
    let is_odd = |c: char| c.is_whitespace() || c == '/' || c == ':';
    (1..=15).contains(&name.len()) && name != "." && name != ".." && !name.contains(is_odd)
}

/// The number of a descriptor that is not one of the standard ones.
fn descriptor(text: &str) -> Result<i32, String> {
    let number = text.parse().ok().filter(|&number| number > 2);
    number
        .ok_or_else(|| format!("tap-fd={text} is no inherited descriptor: give its number, from 3"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_a_link_and_perhaps_an_address() {
        let plain = NetConfig { link: LinkConfig::Passt(None), mac: None, vhost: UseVhost::Auto };
        assert_eq!(parse("passt"), Ok(plain));
        let network = parse("passt=/run/p,,1,mac=52:48:00:00:00:01").unwrap();
        assert_eq!(network.link, LinkConfig::Passt(Some("/run/p,1".into())));
        assert_eq!(network.mac.unwrap().to_string(), "52:48:00:00:00:01");
        assert_eq!(parse("tap=tap0").unwrap().link, LinkConfig::Tap("tap0".to_owned()));
        assert_eq!(parse("tap-fd=7").unwrap().link, LinkConfig::TapFd(7));
        for (word, vhost) in
            [("on", UseVhost::On), ("off", UseVhost::Off), ("auto", UseVhost::Auto)]
        {
            assert_eq!(parse(&format!("tap=tap0,vhost={word}")).unwrap().vhost, vhost);
        }
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let error = |text| parse(text).unwrap_err();
        assert!(error("user").starts_with("user is not known: give passt"));
        assert!(error("passt,mac=zz").starts_with("mac=zz is no address of a card: give one such"));
        assert!(error("passt,mtu=9000").starts_with("mtu=9000 is not known"));
        assert!(
            error("tap=t,vhost=yes").starts_with("vhost=yes is not known: there are mac=MAC and")
        );
        assert!(error("tap=").contains("no name of an interface"));
        assert!(error("tap=a/b").contains("no name of an interface"));
        assert!(error("tap=0123456789abcdef").contains("no name of an interface"));
        assert!(error("tap-fd=2").contains("give its number, from 3"));
        assert!(error("tap-fd=x").contains("tap-fd=x is no inherited descriptor"));
        assert!(error("tap").starts_with("tap is not known"));
        assert!(parse("passt=").is_err() && parse("").is_err());
    }
}
