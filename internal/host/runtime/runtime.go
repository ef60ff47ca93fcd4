// Package runtime is the contract of what runs a sandbox. Two kinds keep it: microVMs
// (package microvm) and gVisor (package gvisor). The sandbox state machine knows only this, and
// package runtimetest is the contract as tests.
//
// # States of an instance
//
//	Boot ──────────────► running ⇄ frozen ─► stopped
//	Restore ─► frozen ─────┘
//
// Freezing has two halves. The caller first has the guest agent freeze user processes; Freeze
// then stops the rest as far as the runtime can: a microVM stands still as a whole, in gVisor
// the guest agent alone runs on (Capabilities.FreezesGuest). Either way nothing of the user's
// runs from there to Thaw, and what a Capture holds is what was there at the Freeze. Capture
// needs a frozen instance and leaves it frozen: it writes what is needed to Restore into a
// directory, synced, and returns a Record of it; the caller publishes both. A capture may be
// restored any number of times once its source was thawed or has ended, also while it runs on
// (snapshot, fork). Restore returns a frozen instance, in which user processes wait for the
// guest agent's thaw. Freeze, Thaw and Stop are idempotent; Stop is legal in every state.
//
// A capture of the disk alone (CaptureOptions.DiskOnly) is booted from (BootOptions.From), and
// refused by Restore with fault.FailedPrecondition. Where memory and disk are apart
// (Capabilities.DiskApart) a full capture can be booted from too, however damaged its memory is,
// and the disk of an instance that died becomes a capture by Salvage.
//
// # Captures and files
//
// A capture stands on files: some in its directory, some in that of an earlier capture or of the
// disk, some of a template or a build. None of them is ever changed once a capture names it, so
// they may be shared by hard links: Link gives a directory of its own to a capture, on which
// nobody else's removal has any effect. That is what snapshots and forks are made of: the file
// system counts the references.
//
// # Failure rules
//
// Boot and Restore undo what they made when they fail. A failed Capture leaves the instance
// frozen and usable; only one booted as a template is ended by its Capture. What Restore and
// Boot read of a capture is verified before a guest runs: damage is fault.DataLoss, and nothing
// runs. Disk layers of more than VerifyFirst bytes in all are verified while the guest runs already; on
// damage it is frozen and ended, with the reason. Instances outlive
// the agent: Adopt takes one over from its Record; Discard gives back whatever an instance
// whose Record may never have been written left behind.
//
// # Example
//
//	in, _ := rt.Restore(ctx, spec, warm)   // frozen
//	in.Thaw(ctx)                           // guest handshake, then serve
//	in.Freeze(ctx)
//	rec, _ := in.Capture(ctx, dir, CaptureOptions{})
//	publish(dir, rec); in.Stop(ctx); rt.Restore(ctx, spec2, Capture{dir, rec})
package runtime

import (
	"context"
	"encoding/json"
	"os"
	"time"
)

// VerifyFirst is how much of a capture's disk is verified before its guest runs; of a larger one
// all of it is verified right afterwards.
const VerifyFirst = 256 << 20

// Isolation is what stands between a sandbox and its host.
type Isolation string

const (
	Hardware Isolation = "hardware" // a microVM under KVM
	Sentry   Isolation = "sentry"   // gVisor
	Emulated Isolation = "emulated" // QEMU TCG: no guarantee from its makers
)

// Resources of one sandbox.
type Resources struct {
	VCPUs      int `json:"vcpus"`
	MemoryMB   int `json:"memory_mb"`
	DiskSizeMB int `json:"disk_size_mb"`
}

// Template is what a cold boot starts from: one file tree, in the form of each runtime.
type Template struct {
	Digest string `json:"digest"`
	// Kernel (bzImage), KernelELF (the same, uncompressed) and Disk (ext4, raw) are a microVM's;
	// DiskBytes is the least size of any disk.
	Kernel    string `json:"kernel"`
	KernelELF string `json:"kernel_elf,omitempty"`
	Disk      string `json:"disk"`
	DiskBytes int64  `json:"disk_bytes"`
	// Tree is the file tree as an EROFS image, for a runtime with a kernel of its own.
	Tree string `json:"tree,omitempty"`
}

// Port is the sandbox's end of its network slot: an open tap; for Capabilities.TakesNamespace
// the path of a network namespace with eth0 in it, made for this start alone; for
// Capabilities.OpensTap the path of the namespace of a tap, TapName, that the spec's uid may open.
type Port struct {
	Tap       *os.File
	Namespace string
	TapName   string
	MAC       string
}

// Guest is the guest agent for a runtime that starts it as a process of its own
// (Capabilities.GuestBoots is false). Needed by Boot only.
type Guest struct {
	// Path of roost-guest on the host. A file of that content must stay there while a capture
	// names it.
	Path string `json:"path"`
	// Token is what it accepts first; Hostname, DNS and DefaultUser are what it starts with.
	Token       string `json:"-"`
	Hostname    string `json:"hostname"`
	DNS         string `json:"dns"`
	DefaultUser string `json:"default_user"`
}

// Spec says what to run. Its directories exist and are root's alone.
type Spec struct {
	ID        string
	Resources Resources
	Template  Template
	// Initrd holds the guest agent of a microVM; needed by Boot only.
	Initrd  string
	Guest   Guest
	RunDir  string
	DiskDir string
	// DiskIndex names the live disk that this start makes in DiskDir.
	DiskIndex int
	// UID and GID are this sandbox's alone; 0 is none.
	UID  int
	Port Port
}

// Capture is a published capture: a directory and what Capture said of it.
type Capture struct {
	Dir    string
	Record json.RawMessage
}

// CaptureOptions tune one Capture.
type CaptureOptions struct {
	// Parent is the capture that the instance was restored from, when it is of this sandbox:
	// only what changed since is written.
	Parent *Capture
	// DiskOnly leaves memory and processes out.
	DiskOnly bool
}

// CaptureStats say what a Capture cost.
type CaptureStats struct {
	BytesWritten int64
	PrivatePages int64
	ZeroPages    int64
	Phases       []Phase
}

// Phase is a named, timed step.
type Phase struct {
	Name     string        `json:"name"`
	Duration time.Duration `json:"duration_ns"`
}

// BootOptions tune one Boot.
type BootOptions struct {
	// Template: the memory will be captured whole, to be shared by many; Capture ends the
	// instance.
	Template bool
	// From is a capture whose disk, not memory, is booted from; nil is the template's.
	From *Capture
}

// Exit says how an instance ended.
type Exit struct {
	Reason    string
	Requested bool
	At        time.Time
}

// Usage is real use on the host.
type Usage struct {
	MemoryBytes int64
	DiskBytes   int64
}

// Capabilities say how runtimes differ.
type Capabilities struct {
	// GuestBoots: the guest needs a kernel and an initramfs of ours. Where not, the runtime
	// starts the guest agent itself, from Spec.Guest.
	GuestBoots bool
	// FreezesGuest: Freeze stops the guest agent too. Where not, user processes are held by
	// signals (gVisor has no cgroup freezer): seen by handlers of SIGCONT.
	FreezesGuest bool
	// TakesNamespace: the port is a network namespace, not a tap.
	TakesNamespace bool
	// ELFKernel: what boots is Template.KernelELF; it is filled in for a Boot alone.
	ELFKernel bool
	// OpensTap: the port is a tap that the runtime opens by its name.
	OpensTap bool
	// FixedDisk: a capture's disk keeps the size that it was booted with.
	FixedDisk bool
	// DiskApart: memory and disk are apart. A full capture may be booted from, and a dead
	// instance's disk still means something (Salvage).
	DiskApart bool
}

// Runtime runs sandboxes. Methods are safe for concurrent use.
type Runtime interface {
	Name() string
	Isolation() Isolation
	Capabilities() Capabilities
	// Identity names everything of this runtime that a capture depends on; a capture restores
	// only where it is the same.
	Identity() map[string]string
	// Boot starts a kernel; the instance runs.
	Boot(ctx context.Context, spec Spec, opts BootOptions) (Instance, error)
	// Restore starts from a capture; the instance is frozen. A capture that this runtime cannot
	// load is fault.FailedPrecondition.
	Restore(ctx context.Context, spec Spec, from Capture) (Instance, error)
	// Adopt takes over a running instance. One that is gone is fault.NotFound.
	Adopt(ctx context.Context, spec Spec, record json.RawMessage) (Instance, error)
	// Discard ends and removes whatever a start of spec left: processes of its uid, its live
	// disk. Captures and the layers that they name are kept. Idempotent.
	Discard(ctx context.Context, spec Spec) error
	// Reap ends what a start of spec left running and keeps its files.
	Reap(ctx context.Context, spec Spec) error
	// Compact makes a capture that has become too deep to restore shallow again: it returns a
	// new record, to be published in place of the old one, and changes no file that the old one
	// names. changed is false when there was nothing to do.
	Compact(ctx context.Context, spec Spec, c Capture) (record json.RawMessage, changed bool, err error)
	// ConsoleOf is the kept console of an instance that is gone.
	ConsoleOf(spec Spec) ([]byte, error)
	// Files lists the files outside its directory that a capture stands on (layers, bases).
	Files(c Capture) ([]string, error)
	// Link makes dir (which exists and is on root's file system) hold, by hard links, every file
	// below root that c stands on, and returns the record that the capture has there, to be
	// published with dir. Files elsewhere (templates, builds) stay where they are. dir may be
	// c.Dir: then what lies outside of it is added. c itself is not changed. Names that are not
	// the runtime's own files (a manifest) are left alone; dir is synced. On failure the caller
	// removes dir.
	Link(ctx context.Context, c Capture, dir, root string) (json.RawMessage, error)
	// Salvage makes a capture of the disk alone of an instance that has ended without one: record
	// is its last Instance.Record. Its files stay; those that the capture needs become immutable.
	// The capture's directory is dir. Idempotent. Without Capabilities.DiskApart it is
	// fault.FailedPrecondition.
	Salvage(ctx context.Context, spec Spec, record json.RawMessage, dir string) (json.RawMessage, error)
}

// Instance is one running sandbox. Methods are safe for concurrent use.
type Instance interface {
	// Record is what Adopt needs; it changes when the disk does.
	Record() (json.RawMessage, error)
	Freeze(ctx context.Context) error
	Thaw(ctx context.Context) error
	Capture(ctx context.Context, dir string, opts CaptureOptions) (json.RawMessage, CaptureStats, error)
	// Stop ends the instance and lets go of its disk; the disk's file stays.
	Stop(ctx context.Context) error
	// Detach lets go of the instance without ending it.
	Detach()
	Exited() <-chan struct{}
	Exit() Exit
	// Stopped says why an instance that has not ended cannot run: its process was stopped by a
	// signal or a debugger. "" is what a healthy one says, a frozen one too. It only looks.
	Stopped() string
	Usage() (Usage, error)
	Console() ([]byte, error)
}

// Keeper is a runtime that keeps builds of itself for the captures and instances that can run
// in no other.
type Keeper interface {
	// NeededBy are the files that an instance's record stands on; Files says it of a capture.
	NeededBy(record json.RawMessage) ([]string, error)
	// Retire removes the builds that nothing in used stands on, but not the current one.
	Retire(used map[string]bool) error
}

// Held is something that a start put on the host outside of its directories and that is no process: a
// cgroup, a block device.
type Held struct {
	// Kind is a word for people: "cgroup", "device-mapper device", "loop device".
	Kind, Name string
	// ID and UID are those of the start's spec, Path is a file of it; what is not known is zero.
	ID   string
	UID  int
	Path string
}

// Holder is a runtime whose starts leave such things until they are stopped.
type Holder interface {
	// Held lists those of this installation that exist, whoever has made them, in an order in which
	// they can be given back.
	Held(ctx context.Context) ([]Held, error)
	// GiveBack removes one in which nothing runs and that nothing uses any more. Idempotent.
	GiveBack(ctx context.Context, h Held) error
}

// Trimmer is a runtime that keeps memory for later and can give back what was long unused.
type Trimmer interface {
	Trim(idle time.Duration) error
}
