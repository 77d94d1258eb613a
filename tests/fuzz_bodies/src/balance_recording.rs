//! Recordings of the balancer: replayed, or refused with a reason.

use std::path::Path;

use balance_host::{RecordError, Replay, Step};

/// The bytes are a recording, and then the payloads of one whose frames are right. Without the second
/// way, no input would get past the checksums.
pub(crate) fn run(data: &[u8]) {
    replay(data);
    replay(&framed(data));
}

/// The same recording has the same decisions, and an error is the last that comes.
fn replay(recording: &[u8]) {
    let read = || -> Result<(Vec<Step>, Option<String>), RecordError> {
        let mut replay = Replay::new(recording, Path::new("recording"), None)?;
        let (mut steps, mut error) = (Vec::new(), None);
        for step in &mut replay {
            match step {
                Ok(step) => steps.push(step),
                Err(refused) => {
                    assert_eq!(error, None, "something follows an error");
                    error = Some(refused.to_string());
                }
            }
        }
        assert!(replay.next().is_none(), "something follows the end");
        serde_json::to_string(&replay.status()).unwrap();
        Ok((steps, error))
    };
    match (read(), read()) {
        (Ok(once), Ok(again)) => assert_eq!(once, again),
        (Err(error), Err(_)) => assert!(!error.to_string().is_empty()),
        (once, again) => panic!("{once:?}, and then {again:?}"),
    }
}

/// A recording of the payloads in `data`, each of which follows its length in two bytes.
fn framed(mut data: &[u8]) -> Vec<u8> {
    let mut recording = b"hvb-rec\x01".to_vec();
    while let Some((length, rest)) = data.split_first_chunk() {
        let length = usize::from(u16::from_le_bytes(*length)).min(rest.len());
        let (payload, rest) = rest.split_at(length);
        let length = u32::try_from(payload.len()).expect("two bytes count it");
        recording.extend_from_slice(&length.to_le_bytes());
        recording.extend_from_slice(&crc32fast::hash(payload).to_le_bytes());
        recording.extend_from_slice(payload);
        data = rest;
    }
    recording
}
