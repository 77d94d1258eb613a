//! Hypercalls and the SynIC pages: arbitrary registers and input, on memory with arbitrary content.

use arbitrary::{Arbitrary, Unstructured};
use dynmem_protocol::HeatHint;
use kvm_hyperv::hypercall::{Hypercall, MAX_PAYLOAD};
use kvm_hyperv::synic::{Delivery, EVENT_FLAGS, MAX_QUEUED, SynicRegisters, VpSynic};
use page_range::{Gpfn, PageCount};
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
    /// An extended hypercall with any control word but its code, and any parameters.
    Extended {
        code: u8,
        form: u32,
        parameters: [u64; 2],
    },
    /// A report of free pages with a well-formed start of its input.
    Report {
        at: u8,
        start: u8,
        count: u8,
        words: Vec<u64>,
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
            Step::Extended { code, form, parameters } => {
                let control = 0x8000 | u64::from(code) | u64::from(form) << 16;
                self.extended(control, parameters);
            }
            Step::Report { at, start, count, words } => {
                let at = u64::from(at) * 64;
                for (index, word) in (0..).zip(std::iter::once(2).chain(words)) {
                    let _ = self.memory.write_obj(word, GuestAddress(at + 8 * index));
                }
                let control = 0x8003 | u64::from(count) << 32 | u64::from(start) << 48;
                self.extended(control, [at, 0]);
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
            Ok(Hypercall::Extended(_)) => panic!("the code has 8 bits"),
            Err(status) => assert_ne!(status.result(), 0),
        }
    }

    /// Reads the input as the host does, and takes the ranges in it for free pages.
    fn extended(&self, control: u64, parameters: [u64; 2]) {
        let Ok(Hypercall::Extended(call)) = Hypercall::decode(&self.memory, control, parameters)
        else {
            return;
        };
        let before = self.bytes();
        if let Ok(reps) = call.reps()
            && let Some(size) = HeatHint::size(reps.end.into())
            && let Ok(input) = call.read_input(&self.memory, size)
            && let Some(hint) = HeatHint::parse(&input)
        {
            let (most, end) = (PageCount::new(1 << 18), Gpfn::new(1 << 20).unwrap());
            let free = hint.take(reps.start.into(), most, |range| range.end() <= end);
            assert!(free.ranges.iter().all(|range| range.end() <= end));
            let sum: u64 = free.ranges.iter().map(|range| range.count().get()).sum();
            assert!(sum <= most.get());
            let done = reps.start.into()..=reps.end.into();
            assert!(done.contains(&free.completed));
            assert!(free.is_refused || free.completed > reps.start.into());
        }
        assert_eq!(self.bytes(), before);
        if call.simple().is_ok() {
            let [_, output] = parameters;
            let written = call.write_output(&self.memory, &u64::MAX.to_le_bytes());
            assert_eq!(written.is_ok(), output.is_multiple_of(8) && output < PAGES * PAGE);
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
