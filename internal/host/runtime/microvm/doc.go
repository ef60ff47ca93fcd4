// Package microvm runs a sandbox in a virtual machine: it composes a VMM, a disk driver and
// memory into the contract of package runtime.
//
// A capture holds device state (device.state), memory as the difference from the template's
// (memory.map and a layer called after its content, older layers where they already are) or,
// for a template's own warm memory, the whole of it (memory), and names the stack of sealed disk
// layers that goes with it. Saved memory only ever meets the disk it was saved with: Restore opens a fresh
// live disk over exactly that stack. A capture of the disk alone names the stack and no more.
//
// Where memory is from is the VMM's (vmm.Capabilities.OwnMemory). A memfd: a template's is shared by
// all, a sandbox's pages are read from its process, and written into the next one before it runs.
// Its own: a template's file is mapped as it is; with layers over it a page server answers the
// VM's faults (pager.go), a process of the sandbox's uid that outlives the agent as the VM does and is
// replaced when it dies. What is saved is then what was written since the start over what the VM
// was started from, which a capture names where it lies when it is the sandbox's own, and links
// into its directory otherwise.
//
// A capture seals the live disk as it is, which copies nothing (it is read once, for its sum),
// since most captures are a pause's: their VM ends. One that is thawed instead is first switched to a new live disk over
// the sealed one (top.go); an adopted VM is found on whichever it writes to. At disk.MaxDepth
// the capture merges the layers below.
//
// The disk layers of a capture are verified beside the rest of a start, whose guest waits for the
// verdict; of large ones it comes while the guest runs, and ends it (verify.go). Before a start,
// Compact merges what has become as deep as it may be, into files of new names. Link gives all of
// a capture's files names in one directory; Salvage makes a capture of the disk that a dead VM
// left, which is the last one that its start made.
//
// Failure rules are those of package runtime. Damage of memory leaves the disk to boot from, and
// the hint says so; damage of the disk comes first when both are damaged. The disk's mapping is
// let go only after the VMM is gone; when it cannot be, Stop says so and the base stays attached. A
// disk that the VM went on from is let go of while it runs; when it cannot be, that is Stop's too.
// Layers of memory are verified before a guest runs, as disks are up to runtime.VerifyFirst; of larger
// ones the page server checks each page, and damage ends the VM, with the reason.
package microvm
