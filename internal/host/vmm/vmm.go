// Package vmm is the contract of a virtual machine monitor: one process per VM, started by
// the agent and not ended with it.
//
// # States
//
//	Boot → running ⇄ paused → gone        Restore → paused (device state loaded) → Resume → running
//
// A VM is gone when its process is; Exited tells, for adopted VMs too. Kill is legal in every
// state and idempotent. Pause and Resume are idempotent. SaveState needs a paused VM and leaves
// it paused; it holds device state only, memory is read from the process (see package memory).
//
// # Memory
//
// Some VMMs (QEMU) are given their RAM as a memfd and do not look at it: it is saved by reading the
// process (package memory). Others (Capabilities.OwnMemory: Firecracker) make it themselves: Boot
// takes none; Restore maps Memory.Path privately, or lets Memory.Pager answer its page faults;
// and they keep count of what the guest writes: Dirty, after a SaveState, is all of it since
// the VM was started, however often it was saved in between.
//
// # Failure rules
//
// Boot and Restore undo what they made when they fail: no process, no socket stays. A failed
// SaveState or SwitchDisk leaves the VM as it was; so does a SwitchDisk in which the agent dies,
// for who adopts the VM, or it has happened (WritesTo tells). A VMM runs under the uid and gid of its
// config, sees no file of another VM, and never has the template's memory writable. What a VMM
// says is not trusted: sizes and states are checked.
//
// # Example
//
//	vm, err := d.Boot(ctx, cfg)            // cfg.Memory.Shared: the memfd is the memory
//	vm.Pause(ctx); vm.SaveState(ctx, f)    // the memfd now holds the memory that f goes with
//	vm.Kill(ctx)                           // seal the memfd, then, as often as wanted:
//	vm2, err := d.Restore(ctx, cfg2, f, func(m Mapping) error { return nil })
//	vm2.Resume(ctx)
package vmm

import (
	"context"
	"os"
	"time"
)

// Node is one file or block device of a drive, bottom first; see disk.Node.
type Node struct {
	Path     string
	Format   string // "raw" or "qcow2"
	ReadOnly bool
}

// Memory is where the VM's RAM comes from.
type Memory struct {
	// File is a memfd of exactly MemoryMB, for a VMM without Capabilities.OwnMemory.
	File *os.File
	// Shared: the VM writes the memfd itself (to make a template). Otherwise the memfd is
	// sealed and mapped private: the VM's writes are its own pages.
	Shared bool
	// Path and Pager are for a Restore with Capabilities.OwnMemory; exactly one is set. Path is an
	// immutable file of root's that begins with the RAM (it may be longer); the VMM maps it
	// privately and cannot write it.
	Path string
	// Pager is the unix socket of a page server (package memory/uffd) on the file system of Dir;
	// the VM's uid may connect.
	Pager string
}

// Config describes one VM. Dir must exist, belong to root and be private; sockets and the
// console go there.
type Config struct {
	ID       string
	Dir      string
	VCPUs    int
	MemoryMB int
	Kernel   string
	Initrd   string
	// Cmdline is the kernel command line; the driver adds what it needs to its own (console,
	// timer settings), the same on every start of the same Config shape.
	Cmdline string
	Drive   []Node
	// Tap is an open tap device, passed on and still owned by the caller. With
	// Capabilities.OpensTap it is nil: the VMM itself opens the tap TapName, which belongs to UID,
	// in the network namespace with the path NetNS.
	Tap            *os.File
	NetNS, TapName string
	MAC            string
	Memory         Memory
	// UID and GID the VMM runs under; nothing else may run under them.
	UID, GID int
}

// Handle is what a journal keeps to adopt a VM after an agent restart. JSON-serialisable.
type Handle struct {
	Driver string `json:"driver"`
	ID     string `json:"id"`
	PID    int    `json:"pid"`
	// StartTime of the process in clock ticks since boot: a recycled pid has another.
	StartTime uint64 `json:"start_time"`
	// BootID of the host: after a reboot no handle is valid.
	BootID   string `json:"boot_id"`
	Socket   string `json:"socket"`
	Console  string `json:"console"`
	UID      int    `json:"uid"`
	MemoryMB int    `json:"memory_mb"`
	// MemoryFD is the number of the memfd in the VMM; Dev and Ino identify the memfd itself.
	MemoryFD  int    `json:"memory_fd"`
	MemoryDev uint64 `json:"memory_dev"`
	MemoryIno uint64 `json:"memory_ino"`
}

// Mapping is where a VM's RAM lies in its VMM's address space.
type Mapping struct {
	PID   int
	Addr  uint64
	Bytes int64
}

// Exit says how a VMM ended.
type Exit struct {
	// Reason for people: "killed by signal 9", "guest shut down", "guest panicked".
	Reason string
	// Code is the exit status; -1 when a signal ended it or it is unknown (adopted VM).
	Code int
	// Requested: Kill was called.
	Requested bool
	At        time.Time
}

// Capabilities say how drivers differ.
type Capabilities struct {
	// Accelerated: KVM. Otherwise the guest's code is translated (isolation "emulated").
	Accelerated bool
	// LiveDiskSwitch: SwitchDisk works on a VM that runs, not only on a paused one.
	LiveDiskSwitch bool
	// BlockDrive: a drive is one raw node, a block device or a file; it cannot be a chain. SwitchDisk
	// then takes the one that the VM is to go on with, whatever lies under it.
	BlockDrive bool
	// OwnMemory: see Memory above. Config.Memory.File, Mapping's use for saving, MemoryFile and
	// Restore's prepare are for VMMs without it.
	OwnMemory bool
	// OpensTap: see Config.Tap.
	OpensTap bool
	// ELFKernel: Config.Kernel is an uncompressed ELF vmlinux, not a bzImage.
	ELFKernel bool
}

// Identity is what a capture depends on: restoring needs the same.
type Identity struct {
	// Build is a hash of the VMM's binary.
	Build   string `json:"build"`
	Version string `json:"version"`
	Machine string `json:"machine"`
	CPU     string `json:"cpu"`
	// Cmdline is what the driver adds to the kernel's command line (TSC rate included).
	Cmdline string `json:"cmdline"`
}

// Driver starts VMs.
type Driver interface {
	Name() string
	Capabilities() Capabilities
	Identity() Identity
	// Boot starts a VM from its kernel; it returns when the guest's CPUs run.
	Boot(ctx context.Context, cfg Config) (VM, error)
	// Restore starts a VM, calls prepare (memory may be written there), loads device state
	// from state and returns it paused. prepare may be nil, and must be with OwnMemory.
	Restore(ctx context.Context, cfg Config, state *os.File, prepare func(Mapping) error) (VM, error)
	// Adopt takes over a VM that another agent process started. A VM that is gone, or is not
	// the one in the handle, is fault.NotFound. What a switch of its disk that the other did not
	// end left in the VMM is taken away.
	Adopt(ctx context.Context, h Handle) (VM, error)
	// ReadConsole is the kept console of a VM that had the directory, also when it is gone.
	ReadConsole(dir string) ([]byte, error)
}

// Group is a cgroup that a VM was put into.
type Group struct {
	Name string
	// ID and UID are those of the VM's config.
	ID  string
	UID int
}

// Cleaner is a driver whose VMs leave more than their console in their directories when they end
// while nobody watches them.
type Cleaner interface {
	// Clean removes what VMs that have ended left of a directory, and on the host beside it.
	Clean(ctx context.Context, dir string) error
}

// Grouper is a driver that makes a cgroup for each VM, which may outlive it and the agent.
type Grouper interface {
	// Groups lists those of this installation that exist, whoever has made them.
	Groups(ctx context.Context) ([]Group, error)
	// RemoveGroup removes one in which nothing runs. Idempotent.
	RemoveGroup(ctx context.Context, name string) error
}

// VM is one virtual machine. Methods are safe for concurrent use.
type VM interface {
	Handle() Handle
	Pause(ctx context.Context) error
	Resume(ctx context.Context) error
	SaveState(ctx context.Context, w *os.File) error
	// Dirty opens a sparse file of exactly MemoryMB: the pages that the guest may have written
	// since the VM was started are data (zeros too, except after a Boot, whose memory began as
	// zeros), all others holes. It is whole after a SaveState for as long as the VM stays paused,
	// survives the agent and goes with the VM; the caller closes it. Only with OwnMemory, else
	// fault.FailedPrecondition.
	Dirty(ctx context.Context) (*os.File, error)
	// Mapping is the RAM in the VMM; with OwnMemory its largest piece, to measure by.
	Mapping() (Mapping, error)
	// MemoryFile returns a new descriptor of the VM's memfd, taken back from the VMM and checked
	// against the handle.
	MemoryFile() (*os.File, error)
	// SwitchDisk makes the VM write to the drive's last node, whose lower nodes are the drive
	// that it has now. It does nothing when the VM writes to the last node already.
	SwitchDisk(ctx context.Context, drive []Node) error
	// WritesTo identifies the file (or device) that the guest's writes go to: the VMM says which of
	// its drive's nodes it is, and holds it open for writing.
	WritesTo(ctx context.Context) (os.FileInfo, error)
	// GrowDisk tells a running VM that its disk has become larger.
	GrowDisk(ctx context.Context, sizeBytes int64) error
	// Kill ends the VM and waits until its process is gone.
	Kill(ctx context.Context) error
	// Exited is closed when the process is gone; then Exit says why.
	Exited() <-chan struct{}
	Exit() Exit
	// Stopped says why the process of a VM that is not gone does not run: a signal or a debugger
	// holds it. "" is what any other says, a paused one too.
	Stopped() string
	// Detach lets go of the VM without ending it: the agent stops, the VM lives on.
	Detach()
	// Console returns the kept end of the guest's console (at most 1 MiB).
	Console() ([]byte, error)
}
