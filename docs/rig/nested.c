// SPDX-License-Identifier: Apache-2.0 OR BSD-3-Clause
//
// Shows that an emulated machine mixes up a nested guest with its host: see ../rig.md.
//
//     gcc -O2 -static -pthread -o target/nested docs/rig/nested.c
//     cargo xtask rig --cpus 2 -- target/nested 2 60
//
// Each VM has one processor in real mode, without interrupts, that reads and writes an I/O port for
// ever. Nothing ever loads its CR3, and each read and write returns to this program.

#include <errno.h>
#include <fcntl.h>
#include <linux/kvm.h>
#include <pthread.h>
#include <signal.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

enum { MEMORY = 0x10000, CODE = 0x1000, MOST_VMS = 64, SILENCE = 10 };

struct vm {
    pthread_t thread;
    int vcpu;
    struct kvm_run *run;
    volatile unsigned long exits;
    volatile bool failed;
};

static volatile bool stop;

static void interrupt(int signal) { (void)signal; }

static int must(int result, const char *what) {
    if (result < 0) {
        perror(what);
        exit(2);
    }
    return result;
}

static void fail(struct vm *vm, const char *why) {
    struct kvm_regs regs;
    struct kvm_sregs sregs;
    must(ioctl(vm->vcpu, KVM_GET_REGS, &regs), "KVM_GET_REGS");
    must(ioctl(vm->vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
    printf("%s after %lu exits: rip %#llx rsp %#llx rflags %#llx cr0 %#llx cr3 %#llx\n", why, vm->exits,
           regs.rip, regs.rsp, regs.rflags, sregs.cr0, sregs.cr3);
    vm->failed = true;
}

static void *run(void *argument) {
    struct vm *vm = argument;
    while (!stop && !vm->failed) {
        if (ioctl(vm->vcpu, KVM_RUN, 0) < 0) {
            if (errno != EINTR)
                fail(vm, "an error");
            else if (!stop)
                fail(vm, "silent");
        } else if (vm->run->exit_reason != KVM_EXIT_IO) {
            fail(vm, "another exit");
        } else {
            vm->exits++;
        }
    }
    return NULL;
}

static void start(struct vm *vm, int kvm) {
    // loop: out 0x99, al; in al, 0x99; jmp loop
    static const unsigned char code[] = {0xe6, 0x99, 0xe4, 0x99, 0xeb, 0xfa};
    int fd = must(ioctl(kvm, KVM_CREATE_VM, 0), "KVM_CREATE_VM");
    unsigned char *memory =
        mmap(NULL, MEMORY, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
    memcpy(memory + CODE, code, sizeof code);
    struct kvm_userspace_memory_region region = {.memory_size = MEMORY,
                                                 .userspace_addr = (unsigned long)memory};
    must(ioctl(fd, KVM_SET_USER_MEMORY_REGION, &region), "KVM_SET_USER_MEMORY_REGION");
    vm->vcpu = must(ioctl(fd, KVM_CREATE_VCPU, 0), "KVM_CREATE_VCPU");
    int size = must(ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), "KVM_GET_VCPU_MMAP_SIZE");
    vm->run = mmap(NULL, size, PROT_READ | PROT_WRITE, MAP_SHARED, vm->vcpu, 0);
    struct kvm_sregs sregs;
    must(ioctl(vm->vcpu, KVM_GET_SREGS, &sregs), "KVM_GET_SREGS");
    sregs.cs.base = 0;
    sregs.cs.selector = 0;
    must(ioctl(vm->vcpu, KVM_SET_SREGS, &sregs), "KVM_SET_SREGS");
    struct kvm_regs regs = {.rip = CODE, .rsp = MEMORY / 2, .rflags = 2};
    must(ioctl(vm->vcpu, KVM_SET_REGS, &regs), "KVM_SET_REGS");
    pthread_create(&vm->thread, NULL, run, vm);
}

int main(int count, char **arguments) {
    int vms = count > 1 ? atoi(arguments[1]) : 2, seconds = count > 2 ? atoi(arguments[2]) : 60;
    if (vms < 1 || vms > MOST_VMS || seconds < 1) {
        fprintf(stderr, "usage: nested [VMS [SECONDS]]\n");
        return 2;
    }
    struct sigaction action = {.sa_handler = interrupt};
    sigaction(SIGUSR1, &action, NULL);
    int kvm = must(open("/dev/kvm", O_RDWR | O_CLOEXEC), "/dev/kvm");
    static struct vm vm[MOST_VMS];
    unsigned long last[MOST_VMS] = {0}, exits = 0;
    int silent[MOST_VMS] = {0}, failed = 0;
    for (int n = 0; n < vms; n++)
        start(&vm[n], kvm);
    for (int second = 0; second < seconds && failed < vms; second++) {
        sleep(1);
        failed = 0;
        for (int n = 0; n < vms; n++) {
            silent[n] = vm[n].exits == last[n] ? silent[n] + 1 : 0;
            last[n] = vm[n].exits;
            if (vm[n].failed)
                failed++;
            else if (silent[n] >= SILENCE)
                pthread_kill(vm[n].thread, SIGUSR1);
        }
    }
    stop = true;
    for (int n = 0; n < vms; n++)
        exits += vm[n].exits;
    printf("%d of %d VMs failed, %lu exits\n", failed, vms, exits);
    return failed ? 1 : 0;
}
