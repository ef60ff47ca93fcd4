package microvm

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"strings"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/disk"
	"github.com/roosthq/roost/internal/host/memory"
	"github.com/roosthq/roost/internal/host/runtime"
	"github.com/roosthq/roost/internal/undo"
)

// Compact implements runtime.Runtime. Disk and memory are merged each when they are as deep as
// they may be: the disk's layers into the spec's directory, the memory's into the capture's.
func (r *Runtime) Compact(ctx context.Context, spec runtime.Spec, c runtime.Capture) (_ json.RawMessage, changed bool, err error) {
	var undos undo.Stack
	defer rollback(ctx, &undos, &err)
	rec, err := parseCapture(c)
	if err != nil {
		return nil, false, err
	}
	if len(rec.Disk.Layers) >= disk.MaxDepth {
		rec.Disk.Base.Path = spec.Template.Disk
		if rec.Disk, err = r.shallow(ctx, rec.Disk, spec.DiskDir, spec.DiskIndex); err != nil {
			return nil, false, diskDamage(err)
		}
		changed = true
	}
	if len(rec.Layers) >= memory.MaxLayers {
		merged, err := mergeMemory(ctx, &rec, c.Dir, &undos)
		if err != nil {
			return nil, false, err
		}
		changed = changed || merged
	}
	if !changed {
		return nil, false, nil
	}
	raw, err := json.Marshal(rec.relativeTo(c.Dir))
	if err == nil {
		undos.Discard()
	}
	return raw, true, err
}

// mergeMemory makes one layer and a map of it. A capture with MaxLayers of them restores as it is,
// and the next one starts afresh, so damage is left to Restore to tell (a boot from its disk wants
// none of it), and where there is no space it is not merged.
func mergeMemory(ctx context.Context, rec *captureRecord, dir string, undos *undo.Stack) (bool, error) {
	saved, layers, err := openPages(*rec)
	if err != nil {
		return false, unless(err, fault.DataLoss, fault.FailedPrecondition)
	}
	merged, _, err := memory.Merge(ctx, saved, layers.Readers(), dir)
	if err := errors.Join(err, layers.Close()); err != nil {
		return false, unless(err, fault.DataLoss, fault.ResourceExhausted)
	}
	layer := filepath.Join(dir, merged.LayerName(0))
	drop := func(path string) {
		if !rec.names(path) {
			undos.Push("merged memory", func(context.Context) error { return os.Remove(path) })
		}
	}
	drop(layer)
	// Beside the old map, whose name the old record has.
	file := strings.TrimSuffix(layer, filepath.Ext(layer)) + ".map"
	if err := memory.WriteMap(file, merged); err != nil {
		return false, errors.Join(unless(err, fault.ResourceExhausted), undos.Rollback(ctx))
	}
	drop(file)
	rec.MemoryMap, rec.Layers = file, []string{layer}
	return true, nil
}

// unless drops an error of certain kinds.
func unless(err error, kinds ...fault.Kind) error {
	for _, kind := range kinds {
		if fault.Is(err, kind) {
			return nil
		}
	}
	return err
}
