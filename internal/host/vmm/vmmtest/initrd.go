package vmmtest

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"github.com/cavaliergopher/cpio"

	"github.com/roosthq/roost/internal/host/vmm/vmmtest/debian"
)

// buildInitrd builds the init and packs it with the modules; it replaces the file as a whole,
// since another package's test may be booting the old one.
func buildInitrd(here, kernelRoot, to string) (err error) {
	work, err := os.MkdirTemp(filepath.Dir(to), "initrd-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(work)) }()
	init := filepath.Join(work, "init")
	cmd := exec.Command("go", "build", "-trimpath", "-ldflags=-s -w", "-o", init, "./init")
	cmd.Dir = here
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH=amd64", "GOFLAGS=")
	if out, err := cmd.CombinedOutput(); err != nil {
		return errors.Join(err, errors.New(string(out)))
	}
	packed := filepath.Join(work, "initrd")
	if err := pack(packed, init, kernelRoot); err != nil {
		return err
	}
	return os.Rename(packed, to)
}

func pack(to, init, kernelRoot string) (err error) {
	f, err := os.OpenFile(to, os.O_CREATE|os.O_WRONLY|os.O_EXCL, 0o644)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	w := cpio.NewWriter(f)
	for _, dir := range []string{"dev", "proc", "sys", "modules"} {
		if err := w.WriteHeader(&cpio.Header{Name: dir, Mode: cpio.TypeDir | 0o755}); err != nil {
			return err
		}
	}
	if err := addFile(w, "init", init, 0o755); err != nil {
		return err
	}
	if err := addModules(w, kernelRoot); err != nil {
		return err
	}
	return w.Close()
}

func addModules(w *cpio.Writer, kernelRoot string) error {
	var order []string
	for _, m := range modules {
		path, err := debian.One(filepath.Join(kernelRoot, "lib", "modules", "*", "kernel", m+".ko"))
		if err != nil {
			return err
		}
		name := filepath.Base(m)
		order = append(order, name)
		if err := addFile(w, "modules/"+name+".ko", path, 0o644); err != nil {
			return err
		}
	}
	return add(w, "modules/order", []byte(strings.Join(order, "\n")), 0o644)
}

func addFile(w *cpio.Writer, name, path string, mode cpio.FileMode) error {
	data, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	return add(w, name, data, mode)
}

func add(w *cpio.Writer, name string, data []byte, mode cpio.FileMode) error {
	if err := w.WriteHeader(&cpio.Header{Name: name, Mode: cpio.TypeReg | mode, Size: int64(len(data))}); err != nil {
		return err
	}
	_, err := w.Write(data)
	return err
}
