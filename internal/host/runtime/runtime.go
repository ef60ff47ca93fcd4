// Package runtime is the contract of what runs a sandbox. Two kinds keep it: microVMs
// (package microvm) and, in a later issue, gVisor. The sandbox state machine knows only this.
//
// # States of an instance
//
//	Boot ──────────────► running ⇄ frozen ─► stopped
//	Restore ─► frozen ─────┘
//
// Freeze stops the whole sandbox, its clock as seen from outside included; Thaw lets it go on.
// Capture needs a frozen instance and leaves it frozen: it writes what is needed to Restore
// into a directory, synced, and returns a Record of it; the caller publishes both. Restore
// reads such a directory and returns a frozen instance. Freeze, Thaw and Stop are idempotent;
// Stop is legal in every state.
//
// # Failure rules
//
// Boot and Restore undo what they made when they fail. A failed Capture leaves the instance
// frozen and usable; only one booted as a template is ended by its Capture. Instances outlive
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

// Template is the file tree and kernel that a cold boot starts from.
type Template struct {
	Digest    string `json:"digest"`
	Kernel    string `json:"kernel"`
	Disk      string `json:"disk"`
	DiskBytes int64  `json:"disk_bytes"`
}

// Port is the sandbox's end of its network slot.
type Port struct {
	Tap *os.File
	MAC string
}

// Spec says what to run. Its directories exist and are root's alone.
type Spec struct {
	ID        string
	Resources Resources
	Template  Template
	// Initrd is needed by Boot only.
	Initrd  string
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
	// GuestFreezer: the guest can freeze user processes by itself (a cgroup freezer).
	GuestFreezer bool
	// GuestClock: the guest's clock is its own and must be set after a restore.
	GuestClock bool
	// GuestBoots: the guest needs a kernel and an initramfs of ours.
	GuestBoots bool
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
	Usage() (Usage, error)
	Console() ([]byte, error)
}

// Trimmer is a runtime that keeps memory for later and can give back what was long unused.
type Trimmer interface {
	Trim(idle time.Duration) error
}
