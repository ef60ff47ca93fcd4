// Package disk is the contract of a sandbox's root disk. Two drivers keep it: qcow2
// overlays (anywhere) and device-mapper snapshots (Linux hosts that have it).
//
// # Terms
//
// A base is an immutable raw image; it is never edited or resized in place, since paused
// sandboxes may stand on it. A layer is an immutable set of changed blocks. A stack is a base
// and the layers over it, bottom first. A live disk is a writable top over a stack; exactly
// one VM may use it. Size is what the guest sees, a multiple of SizeUnit; it may be larger than
// the base (the rest reads as zeros) and never smaller.
//
// # Life
//
//	Create(base) / Open(stack) → live → Attach → (VM writes) → Seal → layer → Open(stack+layer) …
//
// Seal of a running disk takes a Switch: the driver makes the next live disk, the Switch makes
// the VM use it from one moment on, and everything written before that moment is in the layer.
// Seal with a nil Switch is for a disk that no VM writes to any more: its VM is gone, or paused
// with its writes flushed. It may be repeated. Should a paused VM run on (a capture failed), the
// disk is live as before and the layer void; the next Seal gives a new one. A sealed
// layer belongs to the agent's user, mode 0400, whoever owned the live disk: giving VMs access
// to layers is the caller's part, as it is for live disks (made by the agent, mode 0600).
//
// # Failure rules
//
// Every method either does its work or leaves things as they were, with one exception: when
// Seal fails after its Switch succeeded, it returns the next live disk beside the error. The VM
// uses that disk and the old one is its top layer; Seal the old one again, with a nil Switch.
//
// Merge and Flatten verify the layers that they read: what they make of a damaged one would look
// whole. Grow, Merge and Flatten refuse a file that a VM still has open for writing
// (fault.FailedPrecondition). Remove and Detach are
// idempotent: what does not exist is removed. A live disk's files lie in the directory given
// at Open and nowhere else. Files are sparse; Usage is allocated blocks × 512. Nothing inside
// a live disk's file is trusted (a VM could have written it): stacks come from the caller,
// never from a header.
//
// # Example
//
//	live, err := d.Create(ctx, base, 5<<30, "/sandboxes/x/disk", 0)
//	att, err := d.Attach(ctx, live)            // give att to the VMM
//	layer, _, err := d.Seal(ctx, live, 0, nil)  // the VM is gone
//	live2, err := d.Open(ctx, live.Stack.With(layer), live.SizeBytes, "/sandboxes/x/disk", 1)
package disk

import (
	"context"
	"os"
)

// DefaultSizeMB is a new sandbox's disk size in MiB.
const DefaultSizeMB = 5120

// SizeUnit divides the size of every live disk and layer (a base may have any size).
const SizeUnit = 64 << 10

// MaxDepth is how many layers a stack may have before it must be merged.
const MaxDepth = 8

// Base is an immutable raw image file.
type Base struct {
	Path      string `json:"path"`
	SizeBytes int64  `json:"size_bytes"`
}

// Layer is an immutable set of changed blocks, in the driver's own format.
type Layer struct {
	Path string `json:"path"`
	// SizeBytes is the size of the disk that the layer was the top of.
	SizeBytes int64 `json:"size_bytes"`
	// Sum is the checksum of the file, holes as zeros, made when it was sealed or merged: it is
	// what Verify compares with (XXH3-128 in hex: it finds damage, not forgery). Empty for a
	// layer of an earlier Roost, or that an adopted VM's disk turned out to stand on; sealing that
	// once more makes it.
	Sum string `json:"sum,omitempty"`
}

// Stack is what a live disk stands on.
type Stack struct {
	Base   Base    `json:"base"`
	Layers []Layer `json:"layers,omitempty"`
}

// With returns the stack with one more layer on top; s is not changed.
func (s Stack) With(l Layer) Stack {
	return Stack{Base: s.Base, Layers: append(append([]Layer(nil), s.Layers...), l)}
}

// SizeBytes is the smallest size that a live disk over the stack may have.
func (s Stack) SizeBytes() int64 {
	if n := len(s.Layers); n > 0 {
		return s.Layers[n-1].SizeBytes
	}
	return s.Base.SizeBytes
}

// Live is a writable disk over a stack.
type Live struct {
	Stack     Stack  `json:"stack"`
	Path      string `json:"path"`
	SizeBytes int64  `json:"size_bytes"`
}

// Node is one file or block device of an attachment.
type Node struct {
	Path     string `json:"path"`
	Format   string `json:"format"` // "raw" or "qcow2"
	ReadOnly bool   `json:"read_only"`
}

// Attachment is how a VMM opens a disk: nodes bottom first, the last one writable. A block
// device is one raw node.
type Attachment struct {
	Nodes []Node `json:"nodes"`
}

// Switch makes a running VM write to next instead of the disk it has. When it returns nil,
// everything written before is in the old files and everything after goes to next.
type Switch func(ctx context.Context, next Attachment) error

// Capabilities say how drivers differ.
type Capabilities struct {
	// BlockDevice: attachments are block devices (else files that only a VMM can read).
	BlockDevice bool
	// LiveSeal: Seal works with a Switch while a VM writes.
	LiveSeal bool
}

// Driver keeps the contract above. Methods are safe for concurrent use on different disks.
type Driver interface {
	Name() string
	Capabilities() Capabilities
	// LivePath is where Open puts the live disk of that index: recovery knows it from a journal
	// that was written before Open returned.
	LivePath(dir string, index int) string
	// Create makes a live disk over a base: Open with no layers.
	Create(ctx context.Context, base Base, sizeBytes int64, dir string, index int) (Live, error)
	// Open makes a live disk over a stack, as a new file in dir whose name carries index
	// (unique in dir; a leftover of the same name is replaced, a file of the stack never is). A
	// size below the stack's is fault.Invalid; a stack of MaxDepth layers or more is
	// fault.FailedPrecondition (Merge it).
	Open(ctx context.Context, stack Stack, sizeBytes int64, dir string, index int) (Live, error)
	// Attach makes the disk usable by a VMM. Idempotent.
	Attach(ctx context.Context, live Live) (Attachment, error)
	// Detach undoes Attach, after the VMM has let go: it ended, or went on to the disk that was
	// opened over this one. Idempotent.
	Detach(ctx context.Context, live Live) error
	// Holds tells whether what a VM writes to, as its VMM says (a file, or a block device), is this
	// live disk.
	Holds(ctx context.Context, live Live, at os.FileInfo) (bool, error)
	// Seal turns a live disk into a synced, immutable layer. With a Switch it also returns the
	// next live disk (index nextIndex), already in use by the VM.
	Seal(ctx context.Context, live Live, nextIndex int, sw Switch) (Layer, *Live, error)
	// Grow makes a live disk that no VM uses larger.
	Grow(ctx context.Context, live Live, sizeBytes int64) (Live, error)
	// Merge writes layers (adjacent, bottom first, all over below) into one new layer at dst.
	// The old ones are untouched. The result appears at dst whole or not at all; a dst that
	// exists is fault.AlreadyExists.
	Merge(ctx context.Context, below Stack, layers []Layer, dst string) (Layer, error)
	// Flatten writes a stack as a new sparse raw image at dst, published as by Merge.
	Flatten(ctx context.Context, stack Stack, dst string) (Base, error)
	// Verify reads a layer and compares it with its Sum; damage is fault.DataLoss, naming the
	// file. A layer without a Sum passes.
	Verify(ctx context.Context, l Layer) error
	// RemoveLive detaches and deletes a live disk's file; the stack is untouched.
	RemoveLive(ctx context.Context, live Live) error
	// RemoveLayer deletes a layer's file. The caller knows that nothing stands on it.
	RemoveLayer(ctx context.Context, l Layer) error
	// Usage is the real use of one file in bytes; a missing file is fault.NotFound.
	Usage(path string) (int64, error)
}

// Mapped is something that an attachment put on the host outside of any directory: a device.
type Mapped struct {
	// Kind is a word for people: "device-mapper device", "loop device".
	Kind string
	Name string
	// Path is the file that it stands for; "" when that is gone.
	Path string
	// Used: another of them stands on it, or this process is about to put one there.
	Used bool
}

// Mapper is a driver whose attachments are such things, which outlive the agent.
type Mapper interface {
	// Mapped lists those of this installation, in an order in which they can be removed.
	Mapped(ctx context.Context) ([]Mapped, error)
	// Unmap removes one that nobody uses. One that is gone is removed.
	Unmap(ctx context.Context, m Mapped) error
}
