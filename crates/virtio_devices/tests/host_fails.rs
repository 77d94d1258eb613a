//! A host that cannot write: alone in its program, since the limit is that of the process.

#[expect(dead_code, reason = "shared with other tests")]
mod driver;
#[expect(dead_code, reason = "shared with other tests")]
mod machine;

use std::sync::Arc;

use driver::MIB;
use machine::*;
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use virtio_devices::{Deed, Format};

#[test]
fn the_operator_is_told_of_what_the_host_cannot_do() {
    let mut machine = machine(Format::Raw);
    let limit = Rlimit { current: Some(MIB), maximum: None };
    let before = getrlimit(Resource::Fsize);
    let _handler =
        signal_hook::flag::register(signal_hook::consts::SIGXFSZ, Arc::default()).unwrap();
    setrlimit(Resource::Fsize, limit).unwrap();
    let status = machine.write(2 * MIB / 512, &[1; 512]);
    setrlimit(Resource::Fsize, before).unwrap();
    assert_eq!(status, IOERR);
    assert_eq!(*machine.failures.lock().unwrap(), [Deed::Write]);
    assert_eq!(machine.write(2 * MIB / 512, &[1; 512]), OK);
}
