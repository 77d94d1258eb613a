//! The link between the rig's init program and the host: the job to run, and framed streams.
//!
//! All streams share one virtio-serial port, so that the exit status can never overtake output.
//! A frame is one byte of [`Kind`], a little-endian `u32` length and that many bytes.

use std::io::{self, Read, Write};
use std::path::PathBuf;

use serde::{Deserialize, Serialize};

/// The name of the virtio-serial port that carries the frames.
pub const PORT: &str = "hv-balloon.rig";

/// The 9p mount tag of the host's root file system.
pub const ROOT_TAG: &str = "root";

/// The file in the initramfs with the [`Job`] as JSON.
pub const JOB_FILE: &str = "/job.json";

/// The longest payload of a frame.
pub const MAX_PAYLOAD: usize = 1 << 16;

/// One command to run in the rig.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Job {
    /// The program and its arguments.
    pub command: Vec<String>,
    /// The whole environment of the program.
    pub env: Vec<(String, String)>,
    /// The working directory, as on the host.
    pub cwd: PathBuf,
    /// Host directories the command may write to: 9p mount tag and path.
    pub writable: Vec<(String, PathBuf)>,
    /// Rows and columns of the caller's terminal, if the command is to have one.
    pub terminal: Option<(u16, u16)>,
}

/// The content of a frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    /// Host to rig: bytes for the command's standard input; an empty payload ends it.
    Stdin,
    /// Rig to host: bytes the command wrote to standard output (or its terminal).
    Stdout,
    /// Rig to host: bytes the command wrote to standard error.
    Stderr,
    /// Rig to host: the machine is up and the command starts.
    Started,
    /// Rig to host: the exit status, an `i32`; 128 + N after signal N.
    Exited,
    /// Rig to host: the command could not be run; the payload is the reason.
    Failed,
}

const KINDS: [Kind; 6] =
    [Kind::Stdin, Kind::Stdout, Kind::Stderr, Kind::Started, Kind::Exited, Kind::Failed];

/// Writes one frame; a payload longer than [`MAX_PAYLOAD`] goes out as several frames.
///
/// # Errors
///
/// The other side is gone.
pub fn write_frame(to: &mut impl Write, kind: Kind, payload: &[u8]) -> io::Result<()> {
    let mut rest = payload;
    loop {
        let (now, later) = rest.split_at(rest.len().min(MAX_PAYLOAD));
        let length = u32::try_from(now.len()).map_err(io::Error::other)?;
        let mut frame = Vec::with_capacity(now.len() + 5);
        frame.push(kind as u8);
        frame.extend_from_slice(&length.to_le_bytes());
        frame.extend_from_slice(now);
        to.write_all(&frame)?;
        rest = later;
        if rest.is_empty() {
            return to.flush();
        }
    }
}

/// Reads one frame; `None` when the other side has closed the link between frames.
///
/// # Errors
///
/// The link broke inside a frame, or the data is not a frame.
pub fn read_frame(from: &mut impl Read) -> io::Result<Option<(Kind, Vec<u8>)>> {
    let mut kind = [0; 1];
    if from.read(&mut kind)? == 0 {
        return Ok(None);
    }
    let mut length = [0; 4];
    from.read_exact(&mut length)?;
    let length = usize::try_from(u32::from_le_bytes(length)).map_err(io::Error::other)?;
    match KINDS.get(usize::from(kind[0])) {
        Some(&kind) if length <= MAX_PAYLOAD => {
            let mut payload = vec![0; length];
            from.read_exact(&mut payload)?;
            Ok(Some((kind, payload)))
        }
        _ => Err(io::Error::other(format!("no frame: kind {}, length {length}", kind[0]))),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn frames_come_back_in_order_with_their_kind() {
        let mut link = Vec::new();
        for (n, kind) in KINDS.into_iter().enumerate() {
            write_frame(&mut link, kind, &vec![7; n]).unwrap();
        }
        let mut from = link.as_slice();
        for (n, kind) in KINDS.into_iter().enumerate() {
            assert_eq!(read_frame(&mut from).unwrap(), Some((kind, vec![7; n])));
        }
        assert_eq!(read_frame(&mut from).unwrap(), None);
    }

    #[test]
    fn a_long_payload_is_split_and_nothing_is_lost() {
        let sent: Vec<u8> = (0..=255).cycle().take(MAX_PAYLOAD * 2 + 3).collect();
        let mut link = Vec::new();
        write_frame(&mut link, Kind::Stdout, &sent).unwrap();
        let mut from = link.as_slice();
        let mut got = Vec::new();
        while let Some((kind, payload)) = read_frame(&mut from).unwrap() {
            assert_eq!(kind, Kind::Stdout);
            got.extend(payload);
        }
        assert_eq!(got, sent);
    }

    #[test]
    fn a_cut_frame_and_an_unknown_kind_are_errors() {
        let mut link = Vec::new();
        write_frame(&mut link, Kind::Stdin, b"abc").unwrap();
        assert!(read_frame(&mut &link[..link.len() - 1]).is_err());
        link[0] = 200;
        assert!(read_frame(&mut link.as_slice()).is_err());
    }
}
