//! What follows the storm of a run: an honest guest must work, a guest with passive vices must come
//! to an end, and silence must not stop the operator.

use guest_model::dynmem::HotAddAnswer;
use hv_balloon::StopReason;
use page_range::PageCount;

use super::{LINGER_STEPS, MAX_WAIT, Weather, World};
use crate::oracle::has_session;
use crate::vice::{self, Vice};

impl World {
    /// Checks that an honest guest and its host work together, whatever happened before.
    pub(super) fn calm(&mut self) {
        self.change_weather(Weather::Calm);
        self.settle();
        if !self.is_running() {
            return;
        }
        let guest_was_let_down = self.guest.is_confused;
        let personality = self.guest.driver.personality();
        let answers = !personality.ignores_requests;
        let adds = personality.hot_add.answer != HotAddAnswer::Silent;
        // Guest and host stood still now and then, for minutes.
        let stop = self.host.snapshot().last_stop;
        let is_overdue = match stop {
            Some(StopReason::Timeout) => answers,
            Some(StopReason::HotAddTimeout) => answers && adds,
            _ => false,
        };
        assert!(!is_overdue || guest_was_let_down, "time alone ended a target: {stop:?}");
        self.guest.driver.memory_mut().release();
        self.guest.driver.report_status();
        self.settle();
        let device = self.host.snapshot();
        let all = device.assigned.saturating_sub(device.unconfirmed);
        self.target(all);
        if answers && !guest_was_let_down {
            self.has_returned_everything(all);
        }
        let less = PageCount::new(self.dice.between(all.get() / 2, all.get()));
        self.target(less);
        let given = self.guest.driver.memory().ballooned().len();
        if !self.guest.is_confused {
            assert_eq!(self.host.watch.oracle.given(), given, "host and guest disagree");
        }
        if self.dice.one_in(2) {
            self.silence();
        }
    }

    pub(super) fn has_returned_everything(&self, all: PageCount) {
        let device = self.host.snapshot();
        // A guest may give pages that it had not confirmed: it has more than was known.
        let is_known = device.unconfirmed.is_zero();
        let is_back = (device.actual, device.target) == (all, Some(all));
        assert!(
            is_back || !is_known && device.actual >= all,
            "not everything came back: {device:?}"
        );
        assert_eq!(self.host.watch.oracle.given(), PageCount::ZERO);
        assert!(self.guest.driver.memory().ballooned().is_empty(), "the guest lacks pages");
    }

    /// Lets a guest with passive vices run on, still omitting what it always omits. It need not
    /// come to rest, but the operator's targets must come to an end.
    pub(super) fn linger(&mut self) {
        self.change_weather(Weather::Calm);
        for _ in 0..LINGER_STEPS {
            self.step();
        }
        for _ in 0..2 {
            let target = self.any_target();
            self.host.set_target(target);
            self.target_ends();
        }
    }

    fn target_ends(&mut self) {
        let until = self.host.now + MAX_WAIT;
        while has_session(self.host.snapshot().state) && self.host.watch.is_target_open() {
            assert!(self.step(), "the operator waits for ever");
            assert!(self.host.now < until, "the operator waits longer than {MAX_WAIT:?}");
        }
    }

    pub(super) fn any_target(&mut self) -> PageCount {
        let maximum = self.host.snapshot().maximum.get();
        PageCount::new(self.dice.between(1, maximum.max(1)))
    }

    /// Silences the guest. Every wait for it must end, and the operator must be able to go on.
    pub(super) fn silence(&mut self) {
        if self.vices.contains(&Vice::Floods) && self.dice.one_in(2) {
            vice::fill_ring(&mut self.guest, &mut self.host);
        }
        self.change_weather(Weather::Silence);
        self.settle();
        for _ in 0..2 {
            let target = self.any_target();
            self.target(target);
        }
    }
}
