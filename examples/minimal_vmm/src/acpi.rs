//! The ACPI tables: processors, the serial port, power off, and VMBus.

use acpi_tables::Aml;
use acpi_tables::aml::{self, Device, IO, Interrupt, Name, Package, Path, ResourceTemplate, Scope};
use acpi_tables::facs::FACS;
use acpi_tables::fadt::{FADTBuilder, Flags};
use acpi_tables::madt::{
    EnabledStatus, IoApic, LocalInterruptController, MADT, ProcessorLocalApic,
};
use acpi_tables::rsdp::Rsdp;
use acpi_tables::sdt::Sdt;
use acpi_tables::xsdt::XSDT;

use crate::devices;

const OEM: [u8; 6] = *b"MINVMM";
const OEM_TABLE: [u8; 8] = *b"MINIMAL ";
const LOCAL_APIC: u32 = 0xfee0_0000;
const IO_APIC: u32 = 0xfec0_0000;
/// Length of a table's header.
const HEADER: u32 = 36;
/// FADT boot flags: no VGA and no CMOS clock.
const NO_VGA_NO_CLOCK: u16 = 1 << 2 | 1 << 5;

/// All tables as one block for the guest address `base`, below 4 GiB. The RSDP comes first.
pub(crate) fn tables(base: u32, vcpus: u8) -> Vec<u8> {
    let mut out = vec![0; Rsdp::len()];
    let mut append = |table: &dyn Aml| {
        // The FACS must be 64-byte aligned.
        out.resize(out.len().next_multiple_of(64), 0);
        let address = base + u32::try_from(out.len()).unwrap_or_default();
        table.to_aml_bytes(&mut out);
        address
    };
    let dsdt = append(&dsdt());
    let facs = append(&FACS::new());
    let mut fadt = FADTBuilder::new(OEM, OEM_TABLE, 1)
        .dsdt_64(dsdt.into())
        .firmware_ctrl_32(facs)
        .flag(Flags::Wbinvd)
        .flag(Flags::PwrButton)
        .flag(Flags::SlpButton);
    fadt.sci_int = devices::SCI_GSI.into();
    fadt.pm1a_evt_blk = u32::from(devices::POWER_EVENT).into();
    fadt.pm1a_cnt_blk = u32::from(devices::POWER_CONTROL).into();
    (fadt.pm1_evt_len, fadt.pm1_cnt_len) = (4, 2);
    fadt.iapc_boot_arch = NO_VGA_NO_CLOCK.into();
    let fadt = append(&fadt.finalize());
    let mut madt = MADT::new(OEM, OEM_TABLE, 1, LocalInterruptController::Address(LOCAL_APIC));
    for id in 0..vcpus {
        madt.add_structure(ProcessorLocalApic::new(id, id, EnabledStatus::Enabled));
    }
    madt.add_structure(IoApic::new(vcpus, IO_APIC, 0));
    let madt = append(&madt);
    let mut xsdt = XSDT::new(OEM, OEM_TABLE, 1);
    xsdt.add_entry(fadt.into());
    xsdt.add_entry(madt.into());
    let xsdt = append(&xsdt);
    let mut rsdp = Vec::new();
    Rsdp::new(OEM, xsdt.into()).to_aml_bytes(&mut rsdp);
    out.splice(..rsdp.len(), rsdp);
    out
}

fn dsdt() -> Sdt {
    let mut code = Vec::new();
    // The sleep type that the guest writes to the control register to power off.
    let off = Package::new(vec![&devices::SLEEP_TYPE_OFF]);
    Name::new(Path::new("_S5_"), &off).to_aml_bytes(&mut code);

    let hid = Name::new(Path::new("_HID"), &aml::EISAName::new("PNP0501"));
    let uid = Name::new(Path::new("_UID"), &aml::ZERO);
    let interrupt = Interrupt::new(true, true, false, false, devices::SERIAL_GSI);
    let io = IO::new(devices::SERIAL, devices::SERIAL, 1, 8);
    let resources = ResourceTemplate::new(vec![&interrupt, &io]);
    let crs = Name::new(Path::new("_CRS"), &resources);
    let serial = Device::new(Path::new("COM1"), vec![&hid, &uid, &crs]);
    Scope::new(Path::new("_SB_"), vec![&serial]).to_aml_bytes(&mut code);

    code.extend(kvm_hyperv::acpi::vmbus_device(devices::VMBUS_GSI));
    let mut dsdt = Sdt::new(*b"DSDT", HEADER, 2, OEM, OEM_TABLE, 1);
    dsdt.append_slice(&code);
    dsdt
}
