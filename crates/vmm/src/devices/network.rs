//! Network cards: their links, their addresses, and who serves them.

use std::io;
use std::sync::{Mutex, PoisonError};

use virtio_devices::{Link, Mac, Net, Passt, Tap, Vhost, VhostError};

use crate::config::{Config, LinkConfig, NetConfig, UseVhost};
use crate::error::{VmmError, chain};
use crate::log_limit::LogLimit;

/// Opens what the card of this number needs.
pub(super) fn open(network: &NetConfig, config: &Config, number: u32) -> Result<Net, VmmError> {
    let mac = network.mac.unwrap_or_else(|| stable_mac(config, number));
    let card = |link: Box<dyn Link>| Net::new(link, mac, Box::new(lost));
    let over_tap = |tap: Tap| {
        let vhost = open_vhost(network.vhost, &tap)?;
        let served_by = if vhost.is_some() { "vhost-net" } else { "hvb" };
        tracing::info!(%mac, served_by, "a network card");
        let card = card(Box::new(tap));
        Ok(match vhost {
            Some(vhost) => card.with_vhost(vhost),
            None => card,
        })
    };
    let link = match &network.link {
        LinkConfig::Passt(_) if network.vhost == UseVhost::On => return Err(VmmError::VhostLink),
        LinkConfig::Passt(Some(socket)) => {
            let error = |source| VmmError::PasstSocket { path: socket.clone(), source };
            Passt::connect(socket).map_err(error)?
        }
        LinkConfig::Passt(None) => Passt::start().map_err(VmmError::Passt)?,
        LinkConfig::Tap(name) => {
            let error = |source| VmmError::Tap { name: name.clone(), source };
            return over_tap(Tap::open(name).map_err(error)?);
        }
        LinkConfig::TapFd(number) => {
            let error = |source| VmmError::TapFd { number: *number, source };
            return over_tap(Tap::inherited(*number).map_err(error)?);
        }
    };
    tracing::info!(%mac, "a network card");
    Ok(card(Box::new(link)))
}

fn lost(error: &io::Error) {
    tracing::error!("the guest has no network any more, for its link is gone: {error}");
}

/// The kernel's part of a card, where it is wanted and there is one.
fn open_vhost(wanted: UseVhost, tap: &Tap) -> Result<Option<Vhost>, VmmError> {
    let limit = Mutex::new(LogLimit::new("vhost-net"));
    let refused = move |error: &VhostError| {
        limit.lock().unwrap_or_else(PoisonError::into_inner).log(|| {
            tracing::warn!(
                "hvb serves the guest's network card in place of vhost-net until its driver starts \
                 anew: {}",
                chain(error)
            );
        });
    };
    match wanted {
        UseVhost::Off => Ok(None),
        UseVhost::On => Vhost::open(tap, Box::new(refused)).map(Some).map_err(VmmError::Vhost),
        UseVhost::Auto => Ok(Vhost::open(tap, Box::new(refused))
            .inspect_err(|error| tracing::info!("no vhost-net: {}", chain(error)))
            .ok()),
    }
}

/// An address that is the same at each start of this VM, and another one for another VM: it follows from
/// what no other VM has while this one runs, the first disk that it writes, or else its monitor's socket.
fn stable_mac(config: &Config, number: u32) -> Mac {
    let disk = config.disks.iter().find(|disk| !disk.is_read_only).map(|disk| &disk.path);
    let path = disk.or(config.qmp.as_ref()).unwrap_or(&config.kernel);
    let path = path.canonicalize().unwrap_or_else(|_| path.clone());
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(path.as_os_str().as_encoded_bytes());
    hasher.update(&number.to_le_bytes());
    Mac::local(hasher.finalize().to_be_bytes())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config::DiskConfig;

    #[test]
    fn machines_that_run_at_the_same_time_have_different_addresses() {
        let disk = |path: &str, is_read_only| DiskConfig {
            path: path.into(),
            format: None,
            is_read_only,
            id: None,
        };
        let base = crate::config::tests::small();
        let with = |disks, qmp: Option<&str>| {
            let config = Config { disks, qmp: qmp.map(Into::into), ..base.clone() };
            [0, 1].map(|number| stable_mac(&config, number).0)
        };
        let macs = [
            with(vec![disk("/a", false)], Some("/x")),
            with(vec![disk("/b", false)], Some("/x")),
            // One image that all read.
            with(vec![disk("/base", true)], Some("/x")),
            with(vec![disk("/base", true)], Some("/y")),
            with(Vec::new(), None),
        ];
        let different: std::collections::BTreeSet<_> = macs.iter().flatten().collect();
        assert_eq!(different.len(), 10);
        // The socket may change where there is a disk.
        assert_eq!(with(vec![disk("/a", false)], None), macs[0]);
    }
}
