//! Hypercalls and the SynIC pages: arbitrary registers and input, on memory with arbitrary content.

use arbitrary::{Arbitrary, Unstructured};
use kvm_hyperv::hypercall::{Hypercall, MAX_PAYLOAD};
use kvm_hyperv::synic::{Delivery, EVENT_FLAGS, MAX_QUEUED, SynicRegisters, VpSynic};
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

const MAX_STEPS: usize = 300;
const PAGES: u64 = 6;
const PAGE: u64 = 4096;
/// The message slot and the event flags of SINT 2 in their pages.
const SLOT: u64 = 512;
const SLOT_LEN: u64 = 256;

#[derive(Arbitrary, Debug)]
enum Step {
    /// Page numbers and enable bits, or any values.
    Registers {
        scontrol: u8,
        siefp: (u8, u8),
        simp: (u8, u8),
    },
    AnyRegisters {
        siefp: u64,
        simp: u64,
    },
    Post(Vec<u8>),
    /// This many at once.
    PostMany(u8),
    Deliver,
    /// The guest empties its slot.
    Take,
    SetEvent(u16),
    Clear,
    Write {
        at: u16,
        value: u64,
    },
    /// A hypercall and its calling convention.
    Hypercall {
        code: u8,
        fast: bool,
        input: u64,
    },
    /// A well-formed message, except for its length and type.
    Message {
        at: u8,
        connection: u32,
        length: u8,
        kind: u8,
    },
}

/// Runs steps encoded in `data`.
pub(crate) fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let mut vp = Vp::new();
    for _ in 0..MAX_STEPS {
        if input.is_empty() {
            break;
        }
        let Ok(step) = Step::arbitrary(&mut input) else { break };
        vp.apply(step);
    }
}

struct Vp {
    memory: GuestMemoryMmap<()>,
    synic: VpSynic,
    registers: SynicRegisters,
    queued: usize,
}

impl Vp {
    fn new() -> Self {
        let len = usize::try_from(PAGES * PAGE).unwrap_or_default();
        Self {
            memory: GuestMemoryMmap::from_ranges(&[(GuestAddress(0), len)]).unwrap(),
            synic: VpSynic::default(),
            registers: SynicRegisters::default(),
            queued: 0,
        }
    }

    fn apply(&mut self, step: Step) {
        match step {
            Step::Registers { scontrol, siefp, simp } => {
                let page = |(number, enable): (u8, u8)| {
                    (u64::from(number % 8) * PAGE) | u64::from(enable & 1)
                };
                let (siefp, simp) = (page(siefp), page(simp));
                self.update(SynicRegisters { scontrol: scontrol.into(), siefp, simp });
            }
            Step::AnyRegisters { siefp, simp } => {
                self.update(SynicRegisters { scontrol: 1, siefp, simp });
            }
            Step::Post(payload) => self.post(&payload),
            Step::PostMany(count) => (0..count).for_each(|n| self.post(&[n; 240])),
            Step::Deliver => self.deliver(),
            Step::Take => {
                let slot = (self.registers.simp & !(PAGE - 1)).checked_add(SLOT);
                let _ = slot.map(|slot| self.memory.write_obj(0_u32, GuestAddress(slot)));
            }
            Step::SetEvent(flag) => self.set_event(flag),
            Step::Clear => {
                self.synic.clear_queue();
                self.queued = 0;
            }
            Step::Write { at, value } => {
                let _ = self.memory.write_obj(value, GuestAddress(at.into()));
            }
            Step::Hypercall { code, fast, input } => {
                let control = u64::from(code) | u64::from(fast) << 16;
                self.decode(control, input);
            }
            Step::Message { at, connection, length, kind } => {
                let at = u64::from(at) * 64;
                for (offset, word) in [(0, connection), (8, kind.into()), (12, length.into())] {
                    let _ = self.memory.write_obj(word, GuestAddress(at + offset));
                }
                self.decode(0x5c, at);
            }
        }
        assert_eq!(self.synic.has_queued(), self.queued > 0);
        assert_eq!(self.synic.has_room(), self.queued < MAX_QUEUED);
    }

    fn update(&mut self, registers: SynicRegisters) {
        if registers.simp != self.registers.simp {
            self.queued = 0;
        }
        self.registers = registers;
        self.synic.update(&self.memory, registers);
    }

    fn post(&mut self, payload: &[u8]) {
        let posted = self.synic.post(payload);
        assert_eq!(posted.is_ok(), self.queued < MAX_QUEUED);
        self.queued += usize::from(posted.is_ok());
    }

    /// The page that a register names, if it is enabled.
    fn page(&self, register: u64) -> Option<u64> {
        let enabled = self.registers.scontrol & register & 1 != 0;
        enabled.then_some(register & !(PAGE - 1))
    }

    fn deliver(&mut self) {
        let before = self.bytes();
        let delivery = self.synic.deliver(&self.memory);
        assert_eq!(delivery == Delivery::Idle, self.queued == 0);
        self.only_changed(&before, self.page(self.registers.simp));
        if delivery == Delivery::Delivered {
            self.queued -= 1;
            let slot = self.page(self.registers.simp).expect("a page to deliver to") + SLOT;
            let kind: u32 = self.memory.read_obj(GuestAddress(slot)).unwrap();
            let len: u8 = self.memory.read_obj(GuestAddress(slot + 4)).unwrap();
            assert_eq!(kind, 1);
            assert!(usize::from(len) <= MAX_PAYLOAD);
        }
    }

    fn set_event(&mut self, flag: u16) {
        let before = self.bytes();
        let raise = self.synic.set_event(&self.memory, flag);
        let page = self.page(self.registers.siefp);
        self.only_changed(&before, page);
        if raise {
            assert!(flag < EVENT_FLAGS);
            let at = page.expect("a page with flags") + SLOT + u64::from(flag / 8);
            let byte: u8 = self.memory.read_obj(GuestAddress(at)).unwrap();
            assert!(byte & 1 << (flag % 8) != 0);
        }
    }

    fn decode(&self, control: u64, input: u64) {
        match Hypercall::decode(&self.memory, control, [input, 0]) {
            Ok(Hypercall::PostMessage { connection_id, payload }) => {
                assert!(connection_id < 1 << 24 && payload.len() <= MAX_PAYLOAD);
            }
            Ok(Hypercall::SignalEvent { connection_id }) => assert!(connection_id < 1 << 24),
            Err(status) => assert_ne!(status.result(), 0),
        }
    }

    fn bytes(&self) -> Vec<u8> {
        let mut bytes = vec![0; usize::try_from(PAGES * PAGE).unwrap_or_default()];
        self.memory.read_slice(&mut bytes, GuestAddress(0)).unwrap();
        bytes
    }

    /// Asserts that nothing has changed except SINT 2's part of this page.
    fn only_changed(&self, before: &[u8], page: Option<u64>) {
        let after = self.bytes();
        let part =
            page.and_then(|page| page.checked_add(SLOT)).map(|start| start..start + SLOT_LEN);
        for (at, (old, new)) in (0_u64..).zip(before.iter().zip(&after)) {
            let is_ours = part.as_ref().is_some_and(|part| part.contains(&at));
            assert!(old == new || is_ours, "{at:#x} was written");
        }
    }
}
