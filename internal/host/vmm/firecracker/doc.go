// Package firecracker drives VMs by Firecracker, each started by its jailer, under KVM.
//
// # How a VM is held
//
// One Firecracker process per VM, with a uid, a session, an IPC, a mount and a network namespace, a
// root directory and (where the host has controllers) a cgroup of its own, under Firecracker's
// seccomp filters. Three things reach it: a pidfd (exit, SIGKILL), the API socket in its jail and
// the console's FIFO. The VMM has the FIFO's reading end too, so that it never breaks, and both
// never block: while no agent reads, the first MiB waits in it and the rest is dropped.
//
// # Files in a VM's directory
//
//	console.log, console.log.1   see package console; kept after the VM's end
//	console.fifo                 0600, root's; gone with the VM, as is
//	jail/EXEC/fc-ID-UID/root/    what the VMM sees as /:
//	    api.sock                 its API
//	    kernel, initrd           of a Boot, read-only: hard links, or copies from elsewhere
//	    disk                     the drive: a device node, or a hard link of a raw file
//	    disk.next                a drive that is being switched to
//	    memory, pager.sock       of a Restore: hard links of Memory.Path or Memory.Pager
//	    saved                    device state that a Restore loads
//	    state, dirty             what the last SaveState wrote
//
// The names are in saved device state, so they are the same in every jail. Once the VMM listens
// the jail's directories are root's: it can make no file, and not put another socket where the
// agent will connect to.
//
// # Memory
//
// Firecracker writes the pages that were written since the last save into one sparse file that has
// the VM's size, over what is there: so "dirty" accumulates, and an interrupted save loses nothing;
// Firecracker takes up the pages again that it did not come to. Where it wrote all and the host's
// disk failed to take it, or nobody heard how a save ended, the next one is of all memory (the file
// "full" tells).
//
// # Failure rules
//
// Boot and Restore leave no process, jail, FIFO or cgroup when they fail. What an agent that died
// left in a directory is removed by the next start in it, or by an Adopt that finds the VM gone. A
// switch of the disk that was not ended is ended or taken back by Adopt. A guest that powers off
// halts for ever, as there is nothing in a microVM to switch off: its kernel's last line on the
// console ends it. After Detach every method but Handle, Exit and Console fails with
// fault.FailedPrecondition.
package firecracker
