//! Input from a monitor client: every command is answered, however the bytes arrive.

use std::sync::Arc;

use qmp::{Conversation, Machine, MonitorError, RunState, Value};

/// Aborts whatever is in progress (see `qmp`'s framer), and sends a query.
const SYNC: &[u8] = b"\xff\n{\"execute\": \"query-status\", \"id\": \"sync\"}\n";

struct Stub;

impl Machine for Stub {
    fn status(&self) -> RunState {
        RunState::running
    }

    fn balloon(&self, bytes: u64) -> Result<(), MonitorError> {
        assert!(bytes > 0 && i64::try_from(bytes).is_ok(), "{bytes} is not a size");
        Ok(())
    }

    fn query_balloon(&self) -> Result<u64, MonitorError> {
        Ok(1 << 30)
    }

    fn system_reset(&self) {}

    fn quit(&self) {}
}

/// The first byte gives the size of the pieces in which the others arrive.
pub(crate) fn run(data: &[u8]) {
    let Some((&piece, said)) = data.split_first() else { return };
    let whole = answers(said, said.len().max(1));
    // Each byte ends at most one value, and begins at most one more.
    assert!(whole.len() <= 2 * said.len() + 1, "{} answers", whole.len());
    for answer in &whole {
        let answer = answer.as_object().unwrap();
        assert!(answer.contains_key("return") != answer.contains_key("error"), "{answer:?}");
    }
    assert_eq!(answers(said, usize::from(piece).max(1)), whole, "the answers depend on the pieces");
    let mut said = said.to_vec();
    said.extend(SYNC);
    let last = answers(&said, said.len()).pop().unwrap();
    assert_eq!(last["id"], "sync", "{last}");
}

fn answers(said: &[u8], piece: usize) -> Vec<Value> {
    let mut conversation = Conversation::new(Arc::new(Stub));
    let mut answers = Vec::new();
    for piece in said.chunks(piece) {
        conversation.push(piece);
        answers.extend(std::iter::from_fn(|| conversation.next_answer()));
    }
    answers
}
