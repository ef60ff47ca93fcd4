package microvm

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"syscall"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/disk"
	"github.com/roosthq/roost/internal/host/process"
	"github.com/roosthq/roost/internal/host/runtime"
	"github.com/roosthq/roost/internal/host/uids"
)

// Salvage implements runtime.Runtime: the disk of a VM that is gone becomes a layer, as if a
// capture of the disk alone had been taken at its last moment.
func (r *Runtime) Salvage(ctx context.Context, spec runtime.Spec, record json.RawMessage, dir string) (json.RawMessage, error) {
	rec, err := parseInstance(record)
	if err != nil {
		return nil, err
	}
	if rec.Live.Path == "" {
		return nil, fault.New(fault.Invalid, "salvage", "disk", "the record names none")
	}
	if err := isGone(spec, rec); err != nil {
		return nil, err
	}
	stack, err := r.sealLast(ctx, spec, rec)
	if err != nil {
		return nil, fault.Wrap(err, "salvage", "disk of sandbox "+spec.ID)
	}
	out := captureRecord{
		Identity: rec.Identity, VCPUs: rec.VCPUs, MemoryMB: rec.Handle.MemoryMB,
		DiskOnly: true, Disk: stack, DiskBytes: rec.Live.SizeBytes,
	}
	return json.Marshal(out.relativeTo(filepath.Clean(dir)))
}

// isGone refuses to touch the disk of a VM that may still write to it: anything of its uid, and
// its VMM itself, whatever uid the spec has by now.
func isGone(spec runtime.Spec, rec instanceRecord) error {
	running := fault.New(fault.FailedPrecondition, "salvage", "disk of sandbox "+spec.ID, "its VM still runs")
	if spec.UID != 0 {
		// A block is a range that begins anywhere.
		found, err := uids.Block(spec.UID).Running()
		if err != nil {
			return err
		}
		if found[spec.UID] {
			return running
		}
	}
	if rec.Handle.PID == 0 || rec.Handle.BootID != process.BootID() {
		return nil
	}
	vmm, err := process.Open(rec.Handle.PID, rec.Handle.StartTime)
	if err == nil {
		vmm.Release()
		return running
	}
	if fault.Is(err, fault.NotFound) {
		return nil
	}
	return err
}

// sealLast makes the last disk of a start a layer and returns the stack up to it. That is the
// one with the highest index: the VM wrote to it, or it was made to be gone on with and is
// empty. Layers that captures have made of the ones below it are the same ones again.
func (r *Runtime) sealLast(ctx context.Context, spec runtime.Spec, rec instanceRecord) (disk.Stack, error) {
	lives := r.chain(rec.Live, firstIndex(r, spec, rec))
	if n := len(lives); n > 0 {
		last := lives[n-1].Path
		unwritten, err := isUnwritten(last)
		if err != nil {
			return disk.Stack{}, deadDisk(err, last)
		}
		if unwritten {
			lives = lives[:n-1]
		}
	}
	stack := rec.Live.Stack
	if len(lives) == 0 && !fileExists(rec.Live.Path) {
		return stack, fault.New(fault.DataLoss, "find", "disk "+rec.Live.Path, "it is missing").WithHint(diskHint)
	}
	for _, live := range lives {
		live.Stack = stack
		if err := r.disk.Detach(ctx, live); err != nil {
			return stack, err
		}
		layer, _, err := r.disk.Seal(ctx, live, 0, nil)
		if err != nil {
			return stack, deadDisk(err, live.Path)
		}
		stack = stack.With(layer)
	}
	return stack, nil
}

// deadDisk says of a disk that cannot be sealed whether it ever will be. Nothing runs that could
// hold it, so one that is refused is damaged, or was made into something else by what had it: it
// must not stand in the way back to the last save. Nor must one that the host cannot read.
func deadDisk(err error, path string) error {
	if !fault.Is(err, fault.FailedPrecondition) && !errors.Is(err, syscall.EIO) {
		return err
	}
	return &fault.Error{Kind: fault.DataLoss, Op: "seal", Object: "disk " + path, Err: err, Hint: diskHint}
}

// isUnwritten tells a disk that never came into use from one that a VM had: the head of a disk's
// file is written last, and reaches the host's disk no later than what the guest synced.
func isUnwritten(path string) (bool, error) {
	f, err := os.Open(path)
	if err != nil {
		return false, fault.Wrap(err, "open", "disk")
	}
	defer func() { _ = f.Close() }() // only read
	head := make([]byte, disk.SizeUnit)
	n, err := io.ReadFull(f, head)
	if err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return false, fault.Wrap(err, "read", "disk "+path)
	}
	for _, b := range head[:n] {
		if b != 0 {
			return false, nil
		}
	}
	return true, nil
}

func fileExists(path string) bool {
	_, err := os.Lstat(path)
	return err == nil
}
