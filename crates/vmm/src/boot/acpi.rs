//! ACPI tables: processors, the serial port, power off, reset, the VMBus device, and the virtio
//! devices.
//!
//! There is no `_S3` and no `_S4`: Linux's `hv_balloon` ignores all requests if hibernation is
//! possible (Linux `hv_balloon.c`).

use acpi_tables::aml::{
    self, Device, IO, Interrupt, Memory32Fixed, Name, Path, ResourceTemplate, Scope,
};
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::gas::{AccessSize, AddressSpace, GAS};
use acpi_tables::madt::{EnabledStatus, IoApic, ProcessorLocalApic};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;
use acpi_tables::{Aml, AmlSink};

use virtio_devices::MMIO_SIZE;

use crate::devices::{Place, places};
use crate::{cmos, ports, power};

const OEM_ID: [u8; 6] = *b"HVBALL";
const OEM_TABLE: [u8; 8] = *b"HVBMACHN";
/// FADT boot flag: no VGA. A PC is assumed to have a display, and this machine has none.
const NO_VGA: u16 = 1 << 2;
const LOCAL_APIC: u32 = 0xfee0_0000;
const IO_APIC: u32 = 0xfec0_0000;

/// Bytes of a table's header, in front of the DSDT's code.
const HEADER: u32 = 36;
/// The same for the MADT, which has two fields of its own in front.
const MADT_HEADER: u32 = 44;
/// MADT flag: there are two 8259 controllers.
const LEGACY_CONTROLLERS: u32 = 1;

/// All tables in one piece, for guest address `base`; the RSDP comes first.
pub(crate) fn tables(base: u64, vcpus: u8, devices: usize) -> Vec<u8> {
    let mut out = Tables { base, bytes: vec![0; Rsdp::len()] };
    let dsdt = out.append(&bytes(&dsdt(devices)));
    let facs = out.append(&bytes(&FACS::new()));
    // All tables lie below 1 MiB.
    let fadt = out.append(&bytes(&fadt(dsdt, u32::try_from(facs).unwrap_or_default())));
    let madt = out.append(&bytes(&madt(vcpus)));
    let mut xsdt = XSDT::new(OEM_ID, OEM_TABLE, 1);
    xsdt.add_entry(fadt);
    xsdt.add_entry(madt);
    let xsdt = out.append(&bytes(&xsdt));
    let rsdp = bytes(&Rsdp::new(OEM_ID, xsdt));
    out.bytes.splice(..rsdp.len(), rsdp);
    out.bytes
}

struct Tables {
    base: u64,
    bytes: Vec<u8>,
}

impl Tables {
    /// Adds a table and returns its guest address, a multiple of 64 as the FACS requires.
    fn append(&mut self, table: &[u8]) -> u64 {
        let offset = self.bytes.len().next_multiple_of(64);
        self.bytes.resize(offset, 0);
        self.bytes.extend_from_slice(table);
        self.base + offset as u64
    }
}

fn bytes(table: &dyn Aml) -> Vec<u8> {
    let mut bytes = Vec::new();
    table.to_aml_bytes(&mut bytes);
    bytes
}

fn fadt(dsdt: u64, facs: u32) -> impl Aml {
    let mut fadt = FADTBuilder::new(OEM_ID, OEM_TABLE, 1)
        .dsdt_64(dsdt)
        .firmware_ctrl_32(facs)
        .flag(Flags::ResetRegSup)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton)
        .flag(Flags::TmrValExt);
    fadt.sci_int = u16::from(power::SCI_GSI).into();
    fadt.pm1a_evt_blk = u32::from(power::EVENT_BLOCK).into();
    fadt.pm1a_cnt_blk = u32::from(power::CONTROL_BLOCK).into();
    fadt.pm_tmr_blk = u32::from(power::TIMER_BLOCK).into();
    (fadt.pm1_evt_len, fadt.pm1_cnt_len, fadt.pm_tmr_len) = (4, 2, 4);
    fadt.reset_reg =
        GAS::new(AddressSpace::SystemIo, 8, 0, AccessSize::ByteAccess, power::RESET.into());
    fadt.reset_value = power::RESET_VALUE;
    fadt.iapc_boot_arch = NO_VGA.into();
    fadt.century = cmos::CENTURY;
    fadt.finalize()
}

/// The table of processors and interrupt controllers. Written by hand, because the crate's own type
/// cannot set the flag for the two legacy controllers.
fn madt(vcpus: u8) -> Sdt {
    let mut madt = Sdt::new(*b"APIC", MADT_HEADER, 4, OEM_ID, OEM_TABLE, 1);
    madt.write_u32(36, LOCAL_APIC);
    madt.write_u32(40, LEGACY_CONTROLLERS);
    for id in 0..vcpus {
        madt.append_slice(&bytes(&ProcessorLocalApic::new(id, id, EnabledStatus::Enabled)));
    }
    madt.append_slice(&bytes(&IoApic::new(vcpus, IO_APIC, 0)));
    madt
}

fn dsdt(devices: usize) -> Sdt {
    let mut code = Code(Vec::new());
    power_off(&mut code);
    serial_port(&mut code);
    places(devices).for_each(|place| virtio_device(&mut code, place));
    code.0.extend(kvm_hyperv::acpi::vmbus_device(ports::VMBUS_GSI));
    let mut dsdt = Sdt::new(*b"DSDT", HEADER, 2, OEM_ID, OEM_TABLE, 1);
    dsdt.append_slice(&code.0);
    dsdt
}

struct Code(Vec<u8>);

impl AmlSink for Code {
    fn byte(&mut self, byte: u8) {
        self.0.push(byte);
    }
}

/// `\_S5`: the value that the guest writes to the sleep register to power off.
fn power_off(code: &mut Code) {
    let package = aml::Package::new(vec![&power::SLEEP_TYPE_OFF]);
    Name::new(Path::new("_S5_"), &package).to_aml_bytes(code);
}

fn serial_port(code: &mut Code) {
    let hid = Name::new(Path::new("_HID"), &aml::EISAName::new("PNP0501"));
    let uid = Name::new(Path::new("_UID"), &aml::ZERO);
    let interrupt = Interrupt::new(true, true, false, false, ports::SERIAL_GSI);
    let io = IO::new(ports::SERIAL, ports::SERIAL, 1, 8);
    let resources = ResourceTemplate::new(vec![&interrupt, &io]);
    let crs = Name::new(Path::new("_CRS"), &resources);
    let device = Device::new(Path::new("COM1"), vec![&hid, &uid, &crs]);
    Scope::new(Path::new("_SB_"), vec![&device]).to_aml_bytes(code);
}

/// A virtio device over MMIO, by the ID that Linux's `virtio_mmio` looks for.
fn virtio_device(code: &mut Code, place: Place) {
    let hid = Name::new(Path::new("_HID"), &"LNRO0005");
    let uid = Name::new(Path::new("_UID"), &place.number);
    let interrupt = Interrupt::new(true, true, false, false, place.gsi);
    // Both are small, and the address is below 4 GiB.
    let word = |number: u64| u32::try_from(number).unwrap_or_default();
    let registers = Memory32Fixed::new(true, word(place.base), word(MMIO_SIZE));
    let resources = ResourceTemplate::new(vec![&registers, &interrupt]);
    let crs = Name::new(Path::new("_CRS"), &resources);
    let name = format!("VIO{}", place.number);
    let device = Device::new(Path::new(&name), vec![&hid, &uid, &crs]);
    Scope::new(Path::new("_SB_"), vec![&device]).to_aml_bytes(code);
}

#[cfg(test)]
mod tests {
    use super::*;

    fn sum(bytes: &[u8]) -> u8 {
        bytes.iter().fold(0, |sum, byte| sum.wrapping_add(*byte))
    }

    #[test]
    fn every_table_is_reachable_and_sums_to_zero() {
        let base = 0xe_0000;
        let tables = tables(base, 2, 8);
        assert_eq!(&tables[..8], b"RSD PTR ");
        assert_eq!(sum(&tables[..20]), 0);
        let at = |offset: usize| {
            let word = u64::from_le_bytes(tables[offset..offset + 8].try_into().unwrap());
            usize::try_from(word - base).unwrap()
        };
        let table = |offset: usize| {
            let length = u32::from_le_bytes(tables[offset + 4..offset + 8].try_into().unwrap());
            &tables[offset..offset + length as usize]
        };
        let xsdt = at(24);
        let (fadt, madt) = (at(xsdt + 36), at(xsdt + 44));
        let dsdt = at(fadt + 140);
        let names: Vec<_> = [xsdt, fadt, madt, dsdt].map(|offset| &table(offset)[..4]).to_vec();
        assert_eq!(names, [b"XSDT", b"FACP", b"APIC", b"DSDT"]);
        for offset in [xsdt, fadt, madt, dsdt] {
            assert_eq!(sum(table(offset)), 0);
        }
    }

    #[test]
    fn there_is_a_vmbus_and_no_hibernation() {
        let code = bytes(&dsdt(1));
        let has = |name: &[u8]| code.windows(name.len()).any(|window| window == name);
        assert!(has(b"VMBus") && has(b"_S5_"));
        assert!(!has(b"_S4_") && !has(b"_S3_"));
    }
}
