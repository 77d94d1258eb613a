//! `--net`: the text of the option.

use vmm::{LinkConfig, NetConfig};

use crate::disk::split;

/// Reads `passt[=SOCKET][,mac=MAC]`. A comma in the socket's name is written twice.
pub(crate) fn parse(text: &str) -> Result<NetConfig, String> {
    let mut parts = split(text).into_iter();
    let link = parts.next().unwrap_or_default();
    let link = match link.split_once('=') {
        None if link == "passt" => LinkConfig::Passt(None),
        Some(("passt", "")) => return Err("passt= names no socket".to_owned()),
        Some(("passt", socket)) => LinkConfig::Passt(Some(socket.into())),
        _ => return Err(format!("{link} is not known: give passt or passt=SOCKET")),
    };
    let mut network = NetConfig { link, mac: None };
    for part in parts {
        match part.split_once('=') {
            Some(("mac", mac)) => network.mac = Some(mac.parse()?),
            _ => return Err(format!("{part} is not known: there is mac=MAC")),
        }
    }
    Ok(network)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_network_is_a_link_and_perhaps_an_address() {
        assert_eq!(parse("passt"), Ok(NetConfig { link: LinkConfig::Passt(None), mac: None }));
        let network = parse("passt=/run/p,,1,mac=52:48:00:00:00:01").unwrap();
        assert_eq!(network.link, LinkConfig::Passt(Some("/run/p,1".into())));
        assert_eq!(network.mac.unwrap().to_string(), "52:48:00:00:00:01");
    }

    #[test]
    fn what_makes_no_sense_is_named() {
        let error = |text| parse(text).unwrap_err();
        assert!(error("user").starts_with("user is not known: give passt"));
        assert!(error("passt,mac=zz").starts_with("mac=zz is no address of a card: give one such"));
        assert!(error("passt,mtu=9000").starts_with("mtu=9000 is not known"));
        assert!(parse("passt=").is_err() && parse("").is_err());
    }
}
