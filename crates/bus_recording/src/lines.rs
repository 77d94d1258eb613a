//! Lines as text.

use serde::Serialize;
use thiserror::Error;

use crate::{Event, FORMAT, Header, Line, OLDEST_VERSION, VERSION};

/// A recording as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Recording {
    /// The first line.
    pub header: Header,
    /// The other lines, without [`Event::End`].
    pub lines: Vec<ReadLine>,
    /// Whether the end is missing: the writer was killed, or could not write on.
    pub is_cut_off: bool,
}

/// A line as it was read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadLine {
    /// The number of the line in the file, from 1.
    pub number: usize,
    /// The line.
    pub line: Line,
}

/// Why a recording cannot be read.
#[derive(Debug, Error)]
#[non_exhaustive]
pub enum ReadError {
    /// Not even the first line is whole.
    #[error("the recording has no header; it was cut off at once, or is something else")]
    NoHeader,
    /// The first line is something else.
    #[error("the first line is no header of a recording")]
    Header(#[source] serde_json::Error),
    /// Another format.
    #[error(
        "the format is '{format}' version {version}, and only '{FORMAT}' of versions {OLDEST_VERSION} to {VERSION} can be read"
    )]
    Format {
        /// Its name.
        format: String,
        /// Its version.
        version: u32,
    },
    /// A line that is not the last is no event.
    #[error("line {number} is no event")]
    Line {
        /// The number of the line, from 1.
        number: usize,
        /// Why.
        #[source]
        source: serde_json::Error,
    },
    /// Lines follow after the end.
    #[error("line {number} comes after the end of the recording")]
    AfterEnd {
        /// The number of the line, from 1.
        number: usize,
    },
}

/// Appends a [`Header`] or [`Line`] to `text`, with the end of its line.
pub fn write(text: &mut Vec<u8>, line: &impl Serialize) {
    // Fails for maps whose keys are no strings, and there are none.
    if serde_json::to_writer(&mut *text, line).is_ok() {
        text.push(b'\n');
    }
}

/// Reads a recording, up to the last whole line.
///
/// # Errors
/// [`ReadError`] if it is something else, or was altered.
pub fn read(text: &[u8]) -> Result<Recording, ReadError> {
    // What follows the last line feed was cut off.
    let whole = text.iter().rposition(|byte| *byte == b'\n').unwrap_or(0);
    let mut lines = text.get(..whole).unwrap_or_default().split(|byte| *byte == b'\n').zip(1..);
    let (first, _) =
        lines.next().filter(|(line, _)| !line.is_empty()).ok_or(ReadError::NoHeader)?;
    let header: Header = serde_json::from_slice(first).map_err(ReadError::Header)?;
    if header.format != FORMAT || !(OLDEST_VERSION..=VERSION).contains(&header.version) {
        return Err(ReadError::Format { format: header.format, version: header.version });
    }
    let mut recording = Recording { header, lines: Vec::new(), is_cut_off: true };
    for (line, number) in lines {
        if !recording.is_cut_off {
            return Err(ReadError::AfterEnd { number });
        }
        let line: Line =
            serde_json::from_slice(line).map_err(|source| ReadError::Line { number, source })?;
        match line.event {
            Event::End => recording.is_cut_off = false,
            _ => recording.lines.push(ReadLine { number, line }),
        }
    }
    Ok(recording)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{BusSetup, DeviceSetup, FromDevice, Packet, ToBus, ToDevice};

    fn text() -> Vec<u8> {
        let bus = BusSetup { vp_count: 1, page_limit: 1 << 20, max_version: 0x5_0003 };
        let device = DeviceSetup {
            boot_ram: vec![(0, 100)],
            hot_add: None,
            settle: Some(7),
            status_reports: true,
            discard_unit: 1,
            inhibited: false,
        };
        let packet = Packet { kind: 6, flags: 1, transaction: u64::MAX, bytes: vec![0xab, 0] };
        let events = [
            Event::ToBus(ToBus::Message { connection: 4, status: 0, bytes: vec![14, 0] }),
            Event::ToDevice(ToDevice::Signalled),
            Event::FromGuest(packet.clone()),
            Event::FromDevice(FromDevice::Packet(packet)),
            Event::End,
        ];
        let devices = [0, 2, 0, 0, 0];
        let mut text = Vec::new();
        write(&mut text, &Header::new(bus, device));
        for ((event, device), t) in events.into_iter().zip(devices).zip(1..) {
            write(&mut text, &Line { t, device, event });
        }
        text
    }

    #[test]
    fn the_format_is_as_documented() {
        let text = String::from_utf8(text()).unwrap();
        let expected = r#"{"format":"hv-balloon bus recording","version":2,"time_unit":"us","bus":{"vp_count":1,"page_limit":1048576,"max_version":327683},"device":{"boot_ram":[[0,100]],"hot_add":null,"settle":7,"status_reports":true,"discard_unit":1,"inhibited":false}}
{"t":1,"dir":"to-bus","event":{"message":{"connection":4,"status":0,"bytes":"0e00"}}}
{"t":2,"device":2,"dir":"to-device","event":"signalled"}
{"t":3,"dir":"from-guest","event":{"kind":6,"flags":1,"transaction":18446744073709551615,"bytes":"ab00"}}
{"t":4,"dir":"from-device","event":{"packet":{"kind":6,"flags":1,"transaction":18446744073709551615,"bytes":"ab00"}}}
{"t":5,"dir":"end"}
"#;
        assert_eq!(text, expected);
    }

    #[test]
    fn a_recording_of_the_first_version_is_read() {
        let text = String::from_utf8(text()).unwrap();
        let old = text.replace(r#""version":2"#, r#""version":1"#).replace(r#","device":2"#, "");
        let devices: Vec<_> =
            read(old.as_bytes()).unwrap().lines.iter().map(|read| read.line.device).collect();
        assert_eq!(devices, [0; 4]);
    }

    #[test]
    fn cut_off_anywhere_a_recording_is_read_up_to_the_cut() {
        let text = text();
        let whole = read(&text).unwrap();
        assert_eq!((whole.lines.len(), whole.is_cut_off), (4, false));
        assert_eq!(whole.lines[3].number, 5);
        let header = text.iter().position(|byte| *byte == b'\n').unwrap();
        for cut in 0..=header {
            assert!(matches!(read(&text[..cut]), Err(ReadError::NoHeader)), "{cut}");
        }
        for cut in header + 1..text.len() {
            let read = read(&text[..cut]).unwrap();
            let lines = text[header + 1..cut].iter().filter(|byte| **byte == b'\n').count();
            assert!(read.is_cut_off);
            assert_eq!(read.lines, whole.lines[..lines]);
        }
    }

    #[test]
    fn an_altered_recording_is_refused_with_the_line() {
        let text = String::from_utf8(text()).unwrap();
        let altered = |from: &str, to: &str| read(text.replace(from, to).as_bytes()).unwrap_err();
        let error = altered(r#""signalled""#, r#""rung""#);
        assert!(matches!(error, ReadError::Line { number: 3, .. }), "{error}");
        let error = altered(r#""version":2"#, r#""version":3"#);
        assert!(error.to_string().contains("version 3"), "{error}");
        let error = altered(r#"{"t":1,"#, "{\"t\":5,\"dir\":\"end\"}\n{\"t\":1,");
        assert!(matches!(error, ReadError::AfterEnd { number: 3 }), "{error}");
    }
}
