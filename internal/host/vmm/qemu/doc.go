// Package qemu drives VMs by qemu-system-x86_64's microvm machine, under KVM where a probe
// guest really ran, else by translating the guest's code (TCG).
//
// # How a VM is held
//
// One QEMU process per VM, with a uid of its own, in its own session, network and IPC
// namespaces, under QEMU's seccomp filter. It opens no path of the agent's: disk nodes, memory,
// tap, sockets and saved state are descriptors. Three things reach it: a pidfd (exit, SIGKILL),
// the QMP socket and the console socket. The sockets listen in the VM's directory, so a new
// agent connects to both again; while nobody reads, QEMU drops console output and never blocks.
//
// # Files in a VM's directory
//
//	qmp.sock       0600, root's; gone with the VM
//	console.sock   0600, root's; gone with the VM
//	console.log    newest half of the console, kept after the VM's end
//	console.log.1  the half before it
//
// # Device state
//
// A template's VM has its memfd mapped shared, so the memfd is its memory; device state is saved
// alone. A restored VM maps the same memfd, sealed by then, privately. Restored VMs start without
// kernel and initrd: what booted lies in memory, and QEMU would keep a copy of both.
//
// # Failure rules
//
// Boot and Restore leave neither process nor socket when they fail. Answers over QMP are bounded
// and checked; device state is read back from a memfd that QEMU wrote, never from the caller's
// file, to which QEMU gets no descriptor. A switch of the disk that was not ended, by an error or
// by the agent's death, leaves nodes and descriptors; Adopt, the next switch and the next Resume
// take away what is above the top or unused (leftovers.go). After Detach every method but Handle,
// Exit and Console fails with fault.FailedPrecondition.
package qemu
