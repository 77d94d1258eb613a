//! Rules: the system calls that a thread may make.

use std::collections::BTreeMap;
use std::fmt;

use seccompiler::{SeccompCmpArgLen, SeccompCmpOp, SeccompCondition};
use syscalls::Sysno;

/// A check of one argument of a call. Arguments count from 0. A filter cannot follow pointers: it
/// sees the address, not the data.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Check {
    pub(crate) argument: u8,
    pub(crate) length: SeccompCmpArgLen,
    pub(crate) operator: SeccompCmpOp,
    pub(crate) value: u64,
}

impl Check {
    /// A 32-bit argument, such as an `int`; the kernel ignores the upper half.
    #[must_use]
    pub fn is(argument: u8, value: impl Into<i128>) -> Self {
        let (length, operator) = (SeccompCmpArgLen::Dword, SeccompCmpOp::Eq);
        Self { argument, length, operator, value: low(value, u32::MAX.into()) }
    }

    /// A 64-bit argument.
    #[must_use]
    pub fn is_long(argument: u8, value: impl Into<i128>) -> Self {
        let (length, operator) = (SeccompCmpArgLen::Qword, SeccompCmpOp::Eq);
        Self { argument, length, operator, value: low(value, u64::MAX) }
    }

    /// An argument whose bits under `mask` equal those of `value`; the other bits may be anything.
    #[must_use]
    pub fn bits(argument: u8, mask: impl Into<i128>, value: impl Into<i128>) -> Self {
        let operator = SeccompCmpOp::MaskedEq(low(mask, u64::MAX));
        let length = SeccompCmpArgLen::Qword;
        Self { argument, length, operator, value: low(value, u64::MAX) }
    }

    pub(crate) fn condition(&self) -> Result<SeccompCondition, seccompiler::BackendError> {
        let (length, operator) = (self.length.clone(), self.operator.clone());
        SeccompCondition::new(self.argument, length, operator, self.value)
    }
}

/// The low bits of a number, in two's complement if negative.
fn low(value: impl Into<i128>, mask: u64) -> u64 {
    // Never an error: the mask has 64 bits.
    u64::try_from(value.into() & i128::from(mask)).unwrap_or_default()
}

/// One way to make a call.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Way {
    name: &'static str,
    pub(crate) checks: Vec<Check>,
}

/// A call that fails without being made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Refusal {
    pub(crate) call: Sysno,
    pub(crate) way: Way,
    pub(crate) errno: i32,
}

/// The calls a thread may make; all others are forbidden.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Rules {
    /// `None` stands for any arguments.
    pub(crate) calls: BTreeMap<Sysno, Option<Vec<Way>>>,
    pub(crate) refusals: Vec<Refusal>,
}

impl Rules {
    /// Nothing is allowed.
    #[must_use]
    pub fn new() -> Self {
        Self::default()
    }

    /// Allows calls with any arguments.
    #[must_use]
    pub fn allow(mut self, calls: impl IntoIterator<Item = Sysno>) -> Self {
        self.calls.extend(calls.into_iter().map(|call| (call, None)));
        self
    }

    /// Allows a call if all of `checks` hold; `name` describes that case in a word. May be used
    /// several times for one call.
    #[must_use]
    pub fn allow_where(
        mut self,
        call: Sysno,
        name: &'static str,
        checks: impl IntoIterator<Item = Check>,
    ) -> Self {
        let way = Way { name, checks: checks.into_iter().collect() };
        self.allow_way(call, way);
        self
    }

    /// If all of `checks` hold, lets a call fail with `errno` without being made, for libraries
    /// that try the call and can do without it.
    #[must_use]
    pub fn refuse(
        mut self,
        call: Sysno,
        name: &'static str,
        checks: impl IntoIterator<Item = Check>,
        errno: i32,
    ) -> Self {
        let way = Way { name, checks: checks.into_iter().collect() };
        self.refusals.push(Refusal { call, way, errno });
        self
    }

    /// Adds the rules of `other`.
    #[must_use]
    pub fn and(mut self, other: &Self) -> Self {
        for (call, ways) in &other.calls {
            match ways {
                None => drop(self.calls.insert(*call, None)),
                Some(ways) => ways.iter().for_each(|way| self.allow_way(*call, way.clone())),
            }
        }
        for refusal in &other.refusals {
            if !self.refusals.contains(refusal) {
                self.refusals.push(refusal.clone());
            }
        }
        self
    }

    fn allow_way(&mut self, call: Sysno, way: Way) {
        if let Some(ways) = self.calls.entry(call).or_insert_with(|| Some(Vec::new()))
            && !ways.contains(&way)
        {
            ways.push(way);
        }
    }
}

/// The names of the calls in alphabetical order, each with the ways it may be made.
impl fmt::Display for Rules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let allowed = self.calls.iter().map(|(call, ways)| match ways {
            None => (call.name(), String::new()),
            Some(ways) => {
                let names: Vec<_> = ways.iter().map(|way| way.name).collect();
                (call.name(), format!(" ({})", names.join(", ")))
            }
        });
        let refused = self.refusals.iter().map(|Refusal { call, way, errno }| {
            let error = std::io::Error::from_raw_os_error(*errno);
            (call.name(), format!(" ({}; fails: {error})", way.name))
        });
        let mut all: Vec<_> = allowed.chain(refused).collect();
        all.sort();
        let words: Vec<_> = all.into_iter().map(|(name, ways)| format!("`{name}`{ways}")).collect();
        f.write_str(&words.join(", "))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn negative_numbers_are_cut_to_the_length_of_the_argument() {
        assert_eq!(Check::is(0, libc::AT_FDCWD).value, 0xffff_ff9c);
        assert_eq!(Check::is_long(0, -2).value, u64::MAX - 1);
        assert_eq!(Check::is(0, u64::MAX), Check::is(0, -1));
    }

    #[test]
    fn any_arguments_win_over_some_and_ways_add_up() {
        let ioctl =
            |name, request| Rules::new().allow_where(Sysno::ioctl, name, [Check::is(1, request)]);
        let both = ioctl("ONE", 1).and(&ioctl("TWO", 2)).and(&ioctl("ONE", 1));
        assert_eq!(both.to_string(), "`ioctl` (ONE, TWO)");
        let any = Rules::new().allow([Sysno::ioctl]);
        assert_eq!(both.clone().and(&any), any);
        assert_eq!(any.clone().and(&both), any);
        let refusing = Rules::new().refuse(Sysno::clone3, "any", [], libc::ENOSYS);
        assert!(refusing.to_string().starts_with("`clone3` (any; fails: "), "{refusing}");
        assert_eq!(refusing.clone().and(&refusing), refusing);
    }
}
