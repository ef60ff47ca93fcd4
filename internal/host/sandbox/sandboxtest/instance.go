package sandboxtest

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"sync/atomic"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/runtime"
)

// instance is one agent's hold on a VM.
type instance struct {
	rt       *Runtime
	vm       *vm
	stack    []string
	template bool
	detached atomic.Bool
}

var _ runtime.Instance = (*instance)(nil)

func (in *instance) usable(ctx context.Context, step string) error {
	select {
	case <-in.vm.exited:
		return fault.New(fault.FailedPrecondition, step, "vm", "it is gone: "+in.vm.exit.Reason)
	default:
	}
	if in.detached.Load() {
		return fault.New(fault.FailedPrecondition, step, "vm", "it was detached")
	}
	return in.rt.at(ctx, step)
}

func (in *instance) Record() (json.RawMessage, error) {
	if err := in.rt.hit("record"); err != nil {
		return nil, err
	}
	return json.Marshal(handle{UID: in.vm.uid, Stack: in.stack, Live: in.vm.live, Build: in.vm.build})
}

func (in *instance) Freeze(ctx context.Context) error {
	if err := in.usable(ctx, "freeze"); err != nil {
		return err
	}
	if in.rt.kind.Caps.FreezesGuest {
		in.vm.wire.set(true)
	}
	return nil
}

func (in *instance) Thaw(ctx context.Context) error {
	if err := in.usable(ctx, "thaw"); err != nil {
		return err
	}
	in.vm.wire.set(false)
	return nil
}

func (in *instance) Capture(ctx context.Context, dir string, opts runtime.CaptureOptions) (json.RawMessage, runtime.CaptureStats, error) {
	if err := in.usable(ctx, "capture"); err != nil {
		return nil, runtime.CaptureStats{}, err
	}
	raw, err := json.Marshal(in.vm.guest.memory())
	if err != nil {
		return nil, runtime.CaptureStats{}, err
	}
	if err := os.WriteFile(filepath.Join(dir, memoryFile), raw, 0o600); err != nil {
		return nil, runtime.CaptureStats{}, err
	}
	rec := record{Memory: []string{memoryFile}, Build: in.vm.build}
	if opts.DiskOnly {
		rec.Memory, rec.DiskOnly = nil, true
		if err := os.Remove(filepath.Join(dir, memoryFile)); err != nil {
			return nil, runtime.CaptureStats{}, err
		}
	}
	if in.rt.kind.Caps.FixedDisk {
		return in.captureWhole(rec, len(raw))
	}
	if opts.Parent != nil && !opts.DiskOnly {
		old, err := in.rt.parse(*opts.Parent)
		if err != nil {
			return nil, runtime.CaptureStats{}, err
		}
		rec.Memory = append(old.Memory, memoryFile)
	}
	live := in.vm.live
	if filepath.Dir(live) == dir { // a template's
		live = filepath.Base(live)
	}
	rec.Disk = append(append([]string(nil), in.stack...), live)
	out, err := json.Marshal(rec)
	return out, runtime.CaptureStats{BytesWritten: int64(len(raw))}, err
}

// captureWhole is a capture with memory and disk in one; a template's leaves nothing else.
func (in *instance) captureWhole(rec record, size int) (json.RawMessage, runtime.CaptureStats, error) {
	rec.DiskMB = in.vm.diskMB
	out, err := json.Marshal(rec)
	if in.template {
		in.rt.kill(in.vm.uid, "killed", true)
		err = errors.Join(err, os.RemoveAll(in.vm.live))
	}
	return out, runtime.CaptureStats{BytesWritten: int64(size)}, err
}

func (in *instance) Stop(ctx context.Context) error {
	if err := in.rt.at(ctx, "stop"); err != nil {
		return err
	}
	if in.detached.Load() {
		return fault.New(fault.FailedPrecondition, "stop", "vm", "it was detached")
	}
	if in.rt.vm(in.vm.uid) == in.vm {
		in.rt.kill(in.vm.uid, "killed", true)
	}
	return nil
}

func (in *instance) Stopped() string         { return in.vm.stopped() }
func (in *instance) Detach()                 { in.detached.Store(true) }
func (in *instance) Exited() <-chan struct{} { return in.vm.exited }
func (in *instance) Exit() runtime.Exit      { <-in.vm.exited; return in.vm.exit }
func (in *instance) Usage() (runtime.Usage, error) {
	return runtime.Usage{MemoryBytes: 1, DiskBytes: 1}, nil
}
func (in *instance) Console() ([]byte, error) { return []byte("console"), nil }

// tokenIn finds the control token that a boot's initramfs carries.
func tokenIn(initrd []byte) string {
	// The last one: the guest's binary before it may hold the words too.
	at := bytes.LastIndex(initrd, []byte(`"control_token"`))
	if at < 0 {
		return ""
	}
	rest := initrd[at+len(`"control_token"`):]
	_, rest, _ = bytes.Cut(rest, []byte(`"`))
	token, _, _ := bytes.Cut(rest, []byte(`"`))
	return string(token)
}
