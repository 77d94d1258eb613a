//! kvm_hyperv
