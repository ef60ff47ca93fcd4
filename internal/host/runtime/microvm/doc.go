// Package microvm runs a sandbox in a virtual machine: it composes a VMM, a disk driver and
// memory into the contract of package runtime.
//
// A capture holds device state (device.state), memory as the difference from the template's
// (memory.map and memory.layer, older layers where they already are) or, for a template's own
// warm memory, the whole of it (memory), and names the stack of sealed disk layers that goes
// with it. Saved memory only ever meets the disk it was saved with: Restore opens a fresh
// live disk over exactly that stack. A capture of the disk alone names the stack and no more.
//
// A capture seals the live disk as it is, which costs nothing, since most captures are a
// pause's: their VM ends. One that is thawed instead is first switched to a new live disk over
// the sealed one (top.go); an adopted VM is found on whichever it writes to. At disk.MaxDepth
// the capture merges the layers below.
//
// Failure rules are those of package runtime. The disk's mapping is let go only after the VMM
// is gone; when it cannot be, Stop says so and the base stays attached.
package microvm
