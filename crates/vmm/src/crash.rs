//! What a guest says when its kernel crashes, in words.

use kvm_hyperv::crash::Crash;
use qmp::Event;

/// The event for the monitor's clients.
pub(crate) fn event(crash: &Crash) -> Event {
    Event::GuestPanicked { parameters: crash.parameters, message: crash.text.as_deref().map(words) }
}

/// Writes what the guest says to the log, as one line.
pub(crate) fn tell(crash: &Crash) {
    let Crash { parameters, text } = crash;
    match text.as_deref().map(words) {
        Some(text) => tracing::warn!("the guest's kernel crashed; it says: {text:?}"),
        None => {
            let [error, id, ip, ax, sp] = parameters;
            tracing::warn!(
                "the guest's kernel crashed, with parameters {error:#x} {id:#x} {ip:#x} {ax:#x} {sp:#x}"
            );
        }
    }
}

/// The guest's text: what is UTF-8 of it, without control characters except the ends of lines.
fn words(text: &[u8]) -> String {
    let text = String::from_utf8_lossy(text);
    text.chars().filter(|it| *it == '\n' || !it.is_control()).collect::<String>().trim().to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_has_no_control_characters_and_any_bytes_are_text() {
        assert_eq!(
            words(b"<0>Kernel panic\n\x1b[2J\0\0tail\xff\n\0"),
            "<0>Kernel panic\n[2Jtail\u{fffd}"
        );
        assert_eq!(words(&[0; 4096]), "");
    }
}
