package gvisor

import (
	"context"
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"time"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/runtime"
)

// Files of captures, by runsc.
const pagesFile = "pages.img"

// saver is one kind of capture.
type saver struct {
	kind  string
	args  []string
	files []string
}

func saverOf(opts runtime.CaptureOptions) saver {
	if opts.DiskOnly {
		return saver{
			kind:  diskKind,
			args:  []string{"fscheckpoint", "--leave-running", "--path=/"},
			files: []string{"fscheckpoint.pb", "multitar.img", "pages_meta.img", pagesFile},
		}
	}
	return saver{
		kind:  fullKind,
		args:  []string{"checkpoint", "--leave-running", "--compression=none"},
		files: []string{"checkpoint.img", "pages_meta.img", pagesFile},
	}
}

// Capture implements runtime.Instance. runsc's captures are whole, so a parent saves nothing.
func (in *instance) Capture(ctx context.Context, dir string, opts runtime.CaptureOptions) (json.RawMessage, runtime.CaptureStats, error) {
	in.saving.Lock()
	defer in.saving.Unlock()
	if err := in.usable("capture"); err != nil {
		return nil, runtime.CaptureStats{}, err
	}
	if !in.frozen.Load() {
		return nil, runtime.CaptureStats{}, fault.New(fault.FailedPrecondition, "capture", "sandbox", "it is not frozen")
	}
	s := saverOf(opts)
	files, stats, err := in.save(ctx, dir, s)
	if err != nil {
		return nil, stats, errors.Join(fault.Wrap(err, "capture", "sandbox"), s.remove(dir))
	}
	raw, err := json.Marshal(in.captureRecord(s.kind, files))
	if err != nil {
		return nil, stats, err
	}
	in.saved.Store(true)
	if in.template {
		err = in.Stop(ctx)
	}
	return raw, stats, err
}

func (in *instance) captureRecord(kind string, files []savedFile) captureRecord {
	r := in.rec
	return captureRecord{
		Kind: kind, Identity: r.Identity, Guest: r.Guest, Template: r.Template, Tree: r.Tree,
		VCPUs: r.VCPUs, MemoryMB: r.MemoryMB, DiskMB: r.DiskMB, Files: files,
	}
}

// save writes the files and makes them durable.
func (in *instance) save(ctx context.Context, dir string, s saver) (files []savedFile, stats runtime.CaptureStats, err error) {
	args := append(append([]string(nil), s.args...), "--image-path="+dir, container)
	steps := []struct {
		name string
		run  func() error
	}{
		{"checkpoint", func() error {
			if err := checkDir(dir); err != nil {
				return err
			}
			namespace := ""
			if in.network {
				namespace = "its own"
			}
			return in.rt.command(in.build, in.runDir, in.rec.Leaf, namespace, args, nil).run(ctx)
		}},
		{"sync", func() (err error) {
			files, err = s.settle(ctx, dir)
			return err
		}},
	}
	for _, step := range steps {
		began := time.Now()
		if err := step.run(); err != nil {
			return nil, stats, err
		}
		stats.Phases = append(stats.Phases, runtime.Phase{Name: step.name, Duration: time.Since(began)})
	}
	for _, f := range files {
		stats.BytesWritten += f.Size
	}
	return files, stats, nil
}

// checkDir: runsc would make a directory that is not there.
func checkDir(dir string) error {
	info, err := os.Stat(dir)
	if err == nil && !info.IsDir() {
		err = fault.New(fault.Invalid, "open", dir, "not a directory")
	}
	return err
}

// settle syncs the files and sums them meanwhile.
func (s saver) settle(ctx context.Context, dir string) ([]savedFile, error) {
	synced := make(chan error, 1)
	go func() { synced <- s.sync(dir) }()
	files, err := describe(ctx, dir, s.files)
	return files, fault.Wrap(errors.Join(err, <-synced), "sync", "capture")
}

func (s saver) sync(dir string) error {
	for _, name := range s.files {
		f, err := os.Open(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		if err := errors.Join(f.Sync(), f.Close()); err != nil {
			return err
		}
	}
	return syncDir(dir)
}

// remove takes back what a failed capture has written.
func (s saver) remove(dir string) error {
	var errs []error
	for _, name := range s.files {
		if err := os.Remove(filepath.Join(dir, name)); err != nil && !errors.Is(err, os.ErrNotExist) {
			errs = append(errs, err)
		}
	}
	return fault.Wrap(errors.Join(errs...), "remove", "files of a failed capture")
}
