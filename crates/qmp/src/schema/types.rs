//! The types of the monitor's answers and events, as QEMU's schema has them where it has them.

use super::Member::{Optional, Required};
use super::Type::{Any, Flag, Int, Size, Text};
use super::{Choice, EMPTY, Object, Type, Variants};
use qapi_qmp::{GuestPanicAction, JSONType, RunState, SchemaMetaType, ShutdownCause};
use qapi_spec::Enum;

/// No capability is optional in this server.
pub(crate) static CAPABILITY: Choice = Choice { name: "QMPCapability", words: &[] };

pub(crate) static SHUTDOWN_CAUSE: Choice =
    Choice { name: "ShutdownCause", words: <ShutdownCause as Enum>::NAMES };

pub(crate) static BALLOON_INFO: Object = Object::new("BalloonInfo", &[Required("actual", Int)]);

pub(crate) static COMMAND_INFO: Object = Object::new("CommandInfo", &[Required("name", Text)]);

pub(crate) static HV_BALLOON_INFO: Object =
    Object::new("HvBalloonInfo", &[Required("committed", Size), Required("available", Size)]);

pub(crate) static MEMORY_INFO: Object =
    Object::new("MemoryInfo", &[Required("base-memory", Size), Optional("plugged-memory", Size)]);

static RUN_STATE: Choice = Choice { name: "RunState", words: <RunState as Enum>::NAMES };

pub(crate) static STATUS_INFO: Object = Object::new(
    "StatusInfo",
    &[Required("running", Flag), Required("status", Type::Choice(&RUN_STATE))],
);

static VERSION_TRIPLE: Object = Object::new(
    "VersionTriple",
    &[Required("major", Int), Required("minor", Int), Required("micro", Int)],
);

pub(crate) static VERSION_INFO: Object = Object::new(
    "VersionInfo",
    &[Required("qemu", Type::Object(&VERSION_TRIPLE)), Required("package", Text)],
);

/// [`MemoryDevice`](crate::MemoryDevice).
pub(crate) static MEMORY_DEVICE: Object = Object {
    name: "MemoryDeviceInfo",
    members: &[Required("type", Type::Choice(&MEMORY_DEVICE_KIND))],
    variants: Some(Variants { tag: "type", cases: &[("hv-balloon", &HV_BALLOON_WRAPPER)] }),
};

static MEMORY_DEVICE_KIND: Choice = Choice { name: "MemoryDeviceInfoKind", words: &["hv-balloon"] };

static HV_BALLOON_WRAPPER: Object =
    Object::new("HvBalloonDeviceInfoWrapper", &[Required("data", Type::Object(&HV_BALLOON))]);

/// [`HvBalloonDevice`](crate::HvBalloonDevice).
pub(crate) static HV_BALLOON: Object = Object::new(
    "HvBalloonDeviceInfo",
    &[
        Optional("id", Text),
        Optional("memaddr", Size),
        Required("max-size", Size),
        Optional("memdev", Text),
        Required("size", Size),
    ],
);

/// [`DynamicMemoryInfo`](crate::DynamicMemoryInfo).
pub(crate) static DYNAMIC_MEMORY: Object = Object::new(
    "XDynamicMemoryInfo",
    &[
        Required("state", Text),
        Required("actual", Size),
        Optional("target", Size),
        Required("maximum", Size),
        Required("boot", Size),
        Required("hot-added", Size),
        Required("assigned", Size),
        Required("ballooned", Size),
        Required("unconfirmed", Size),
        Required("in-flight", Size),
        Required("held", Size),
        Required("undiscarded", Size),
        Required("foreign", Size),
        Optional("reported", Type::Object(&REPORTED)),
        Optional("resident", Size),
        Required("unexplained", Size),
        Optional("ready-in-ms", Size),
        Optional("waiting", Text),
        Optional("stopped", Text),
        Optional("last-refusal", Type::Object(&REFUSAL)),
        Optional("guest-os-id", Size),
        Optional("guest-os", Text),
        Optional("protocol-version", Text),
        Optional("hot-add-alignment", Size),
        // Which members it has is the device's business.
        Required("faults", Any),
    ],
);

static REPORTED: Object =
    Object::new("XDynamicMemoryReported", &[Required("bytes", Size), Required("calls", Size)]);

static REFUSAL: Object =
    Object::new("XDynamicMemoryRefusal", &[Required("target", Size), Required("reason", Text)]);

/// [`IntegrationServicesInfo`](crate::IntegrationServicesInfo).
pub(crate) static INTEGRATION_SERVICES: Object = Object::new(
    "XIntegrationServicesInfo",
    &[Required("heartbeat", Text), Optional("shutdown", Text), Optional("time-sync", Text)],
);

pub(crate) static GUEST_PANIC_ACTION: Choice =
    Choice { name: "GuestPanicAction", words: <GuestPanicAction as Enum>::NAMES };

/// What a guest says of its end. QEMU knows of other kinds as well.
pub(crate) static GUEST_PANIC_INFORMATION: Object = Object {
    name: "GuestPanicInformation",
    members: &[Required("type", Type::Choice(&GUEST_PANIC_KIND))],
    variants: Some(Variants { tag: "type", cases: &[("hyper-v", &GUEST_PANIC_HYPER_V)] }),
};

static GUEST_PANIC_KIND: Choice = Choice { name: "GuestPanicInformationType", words: &["hyper-v"] };

static GUEST_PANIC_HYPER_V: Object = Object::new(
    "GuestPanicInformationHyperV",
    &[
        Required("arg1", Size),
        Required("arg2", Size),
        Required("arg3", Size),
        Required("arg4", Size),
        Required("arg5", Size),
    ],
);

/// An entry of the schema itself.
pub(crate) static SCHEMA_INFO: Object = Object {
    name: "SchemaInfo",
    members: &[
        Required("name", Text),
        Required("meta-type", Type::Choice(&META_TYPE)),
        Optional("features", Type::List(&Text)),
    ],
    variants: Some(Variants {
        tag: "meta-type",
        cases: &[
            ("builtin", &SCHEMA_BUILTIN),
            ("enum", &SCHEMA_ENUM),
            ("array", &SCHEMA_ARRAY),
            ("object", &SCHEMA_OBJECT),
            ("command", &SCHEMA_COMMAND),
            ("event", &SCHEMA_EVENT),
            // There is none in this schema.
            ("alternate", &EMPTY),
        ],
    }),
};

static META_TYPE: Choice =
    Choice { name: "SchemaMetaType", words: <SchemaMetaType as Enum>::NAMES };

static JSON_TYPE: Choice = Choice { name: "JSONType", words: <JSONType as Enum>::NAMES };

static SCHEMA_BUILTIN: Object =
    Object::new("SchemaInfoBuiltin", &[Required("json-type", Type::Choice(&JSON_TYPE))]);

static SCHEMA_ENUM: Object = Object::new(
    "SchemaInfoEnum",
    &[
        Required("members", Type::List(&Type::Object(&SCHEMA_ENUM_MEMBER))),
        Required("values", Type::List(&Text)),
    ],
);

static SCHEMA_ENUM_MEMBER: Object = Object::new(
    "SchemaInfoEnumMember",
    &[Required("name", Text), Optional("features", Type::List(&Text))],
);

static SCHEMA_ARRAY: Object = Object::new("SchemaInfoArray", &[Required("element-type", Text)]);

static SCHEMA_OBJECT: Object = Object::new(
    "SchemaInfoObject",
    &[
        Required("members", Type::List(&Type::Object(&SCHEMA_OBJECT_MEMBER))),
        Optional("tag", Text),
        Optional("variants", Type::List(&Type::Object(&SCHEMA_OBJECT_VARIANT))),
    ],
);

static SCHEMA_OBJECT_MEMBER: Object = Object::new(
    "SchemaInfoObjectMember",
    &[
        Required("name", Text),
        Required("type", Text),
        Optional("default", Any),
        Optional("features", Type::List(&Text)),
    ],
);

static SCHEMA_OBJECT_VARIANT: Object =
    Object::new("SchemaInfoObjectVariant", &[Required("case", Text), Required("type", Text)]);

static SCHEMA_COMMAND: Object = Object::new(
    "SchemaInfoCommand",
    &[Required("arg-type", Text), Required("ret-type", Text), Optional("allow-oob", Flag)],
);

static SCHEMA_EVENT: Object = Object::new("SchemaInfoEvent", &[Required("arg-type", Text)]);
