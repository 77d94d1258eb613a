//! What the host's own failures lead to.

use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex};

use host_faults::Refusal;
use vmbus_kvm::{Host, HostBuilder, StartError, Thread};

use crate::echo::{ECHO, ECHO_PAGE, Echo, config, echo_host, echoes};
use crate::guest::Guest;
use crate::platform::{FakePlatform, Quirks, Seen, chain};

/// Why no host starts while a call is refused.
fn refused(calls: &[libc::c_long], errno: i32) -> String {
    let refusals: Vec<_> = calls.iter().map(|call| Refusal::of(*call, errno)).collect();
    let start = || echo_host(Arc::default()).map(drop);
    chain(&host_faults::with(&refusals, start).unwrap_err())
}

#[test]
fn what_a_host_cannot_be_made_of_is_told_with_a_remedy() {
    let eventfd = refused(&[libc::SYS_eventfd2], libc::EMFILE);
    assert!(eventfd.contains("(ulimit -n"), "{eventfd}");
    let epoll = refused(&[libc::SYS_epoll_create1], libc::EMFILE);
    assert!(epoll.starts_with("cannot create an epoll instance for the bus; raise"), "{epoll}");
    let watches = refused(&[libc::SYS_epoll_ctl], libc::ENOSPC);
    assert_eq!(
        watches,
        "cannot wait for the eventfd that wakes the bus; raise the limit of event sources (sysctl \
         fs.epoll.max_user_watches): No space left on device (os error 28)"
    );
    let threads = refused(&[libc::SYS_clone, libc::SYS_clone3], libc::EAGAIN);
    assert!(threads.starts_with("cannot start the thread of the bus; raise"), "{threads}");
}

#[test]
fn a_thread_that_cannot_wait_any_more_says_so() {
    let seen = Arc::new(Seen::default());
    let refusal = Refusal::of(libc::SYS_epoll_wait, libc::EIO);
    let (host, _) = host_faults::with(&[refusal], || echo_host(Arc::clone(&seen)).unwrap());
    let error = host.reset().unwrap_err();
    assert_eq!(error.to_string(), "the bus has stopped");
    assert_eq!(
        seen.failures(),
        ["cannot wait for the events of the bus: Input/output error (os error 5)"]
    );
    assert!(host.start_machine(FakePlatform::new(Quirks::default())).is_err());
}

#[test]
fn a_thread_that_the_vmm_refuses_does_nothing() {
    let seen = Arc::new(Seen { refuses: Some(Thread::Bus), ..Seen::default() });
    let (host, _) = echo_host(Arc::clone(&seen)).unwrap();
    assert!(host.reset().is_err());
    assert_eq!(seen.failures(), ["the vmbus thread was not allowed to run: not this one"]);
}

#[test]
fn a_device_that_panics_ends_the_host_and_nobody_waits_for_it() {
    let seen = Arc::new(Seen::default());
    let mut builder = HostBuilder::new(config(), Arc::clone(&seen)).unwrap();
    let sink = |_: Vec<u8>| panic!("a defect of the sink, wanted by the test");
    builder.attach(Arc::new(Mutex::new(Echo::new(1))), sink).unwrap();
    let host: Host<Arc<FakePlatform>> = builder.start().unwrap();
    let mut guest = Guest::boot(&host, FakePlatform::new(Quirks::default()));
    let mut channel = guest.open(ECHO, ECHO_PAGE).unwrap();
    channel.rings.send(b"12345678", 0).unwrap();
    guest.signal(channel.connection);
    guest.until("the end", |_| !seen.failures().is_empty());
    assert_eq!(seen.failures(), ["the vmbus thread panicked"]);
    assert!(host.reset().is_err());
}

#[test]
fn a_channel_that_cannot_be_signalled_is_refused_with_a_remedy() {
    let seen = Arc::new(Seen::default());
    let mut builder = HostBuilder::new(config(), Arc::clone(&seen)).unwrap();
    builder.attach(Arc::new(Mutex::new(Echo::new(1))), |_| {}).unwrap();
    // The thread of the bus inherits the refusal.
    let refusal = Refusal::of(libc::SYS_eventfd2, libc::EMFILE);
    let host: Result<Host<Arc<FakePlatform>>, StartError> =
        host_faults::with(&[refusal], || builder.start());
    let host = host.unwrap();
    let mut guest = Guest::boot(&host, FakePlatform::new(Quirks::default()));
    assert!(guest.open(ECHO, ECHO_PAGE).is_none());
    let reports = seen.reports();
    assert!(reports[0].contains("cannot receive the channel's signals; raise"), "{reports:?}");
    assert!(reports[0].contains("then have the guest's driver try again"), "{reports:?}");
}

#[test]
fn a_channel_that_could_not_be_opened_can_be_later() {
    let (host, _) = echo_host(Arc::default()).unwrap();
    let platform = FakePlatform::new(Quirks::default());
    let mut guest = Guest::boot(&host, Arc::clone(&platform));
    platform.refuses_binding.store(true, Ordering::Release);
    assert!(guest.open(ECHO, ECHO_PAGE).is_none());
    platform.refuses_binding.store(false, Ordering::Release);
    let mut channel = guest.open(ECHO, ECHO_PAGE).unwrap();
    echoes(&mut guest, &mut channel, b"12345678");
}
