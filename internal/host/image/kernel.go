package image

import (
	"archive/tar"
	"context"
	"errors"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/roosthq/roost/internal/fault"
)

// unpackedKernel is what the template needs of a kernel package.
type unpackedKernel struct {
	version string
	modules []string // in load order, without ".ko"
}

// makeKernel fetches the kernel and puts vmlinuz and the modules into dir. Nothing is
// installed on the host.
func makeKernel(ctx context.Context, r Recipe, cacheDir, workDir, dir string) (unpackedKernel, error) {
	apt := hostApt{}
	pkg, err := apt.resolve(ctx, r.KernelPackage)
	if err != nil {
		return unpackedKernel{}, fault.Wrap(err, "find kernel", r.KernelPackage)
	}
	deb, err := apt.fetch(ctx, pkg, cacheDir, workDir)
	if err != nil {
		// The lists may name a version that the mirror no longer has.
		if err := apt.update(ctx); err != nil {
			return unpackedKernel{}, err
		}
		if pkg, err = apt.lookup(ctx, r.KernelPackage); err != nil {
			return unpackedKernel{}, err
		}
		if deb, err = apt.fetch(ctx, pkg, cacheDir, workDir); err != nil {
			return unpackedKernel{}, fault.Wrap(err, "fetch kernel", pkg.name)
		}
	}
	modules, err := unpackKernel(ctx, r, deb, workDir, dir)
	return unpackedKernel{pkg.version, modules}, fault.Wrap(err, "unpack kernel", pkg.name)
}

func unpackKernel(ctx context.Context, r Recipe, deb, workDir, dir string) ([]string, error) {
	all := filepath.Join(workDir, "modules")
	if err := os.Mkdir(all, 0o700); err != nil {
		return nil, err
	}
	if err := extractKernel(ctx, deb, filepath.Join(dir, "vmlinuz"), all); err != nil {
		return nil, err
	}
	order, err := moduleOrder(all, r.Modules)
	if err != nil {
		return nil, err
	}
	for _, name := range order {
		file := name + ".ko"
		if err := os.Rename(filepath.Join(all, file), filepath.Join(dir, file)); err != nil {
			return nil, err
		}
	}
	return order, os.RemoveAll(all)
}

// extractKernel streams the package through tar: of its hundreds of files only the kernel and
// the modules are written.
func extractKernel(ctx context.Context, deb, vmlinuz, modulesDir string) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	r, w := io.Pipe()
	done := make(chan error, 1)
	go func() {
		err := command{stdout: w}.run(ctx, "dpkg-deb", "--fsys-tarfile", deb)
		_ = w.CloseWithError(err) // never fails
		done <- err
	}()
	err := pickKernelFiles(ctx, tar.NewReader(r), vmlinuz, modulesDir)
	if err == nil {
		_, err = io.Copy(io.Discard, r) // tar's padding after the last entry
	} else {
		_ = r.CloseWithError(err) // never fails; it ends the tool's writes
		cancel()
	}
	// The tool's own error has come through the pipe; what it says after ours is of no interest.
	if toolErr := <-done; err == nil {
		err = toolErr
	}
	return err
}

func pickKernelFiles(ctx context.Context, archive *tar.Reader, vmlinuz, modulesDir string) error {
	found := false
	for {
		h, err := archive.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return err
		}
		name := path.Base(h.Name)
		switch {
		case h.Typeflag != tar.TypeReg:
		case strings.HasPrefix(name, "vmlinuz-"):
			found = true
			err = writeStream(vmlinuz, archive)
		case name == "modules.builtin":
			err = writeStream(filepath.Join(modulesDir, name), archive)
		case strings.HasSuffix(name, ".ko"):
			err = writeStream(filepath.Join(modulesDir, moduleName(name)+".ko"), archive)
		case strings.HasSuffix(name, ".ko.xz"):
			err = unpackModule(ctx, filepath.Join(modulesDir, moduleName(strings.TrimSuffix(name, ".xz"))+".ko"), archive)
		}
		if err != nil {
			return err
		}
	}
	if !found {
		return fault.New(fault.Internal, "find", "vmlinuz", "the package has none")
	}
	return nil
}

// unpackModule decompresses a module: the guest's loader takes plain ELF only.
func unpackModule(ctx context.Context, dst string, r io.Reader) (err error) {
	packed := dst + ".xz"
	if err := writeStream(packed, r); err != nil {
		return err
	}
	out, err := os.OpenFile(dst, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	err = command{stdout: out}.run(ctx, "xz", "--decompress", "--stdout", packed)
	return errors.Join(err, out.Close(), os.Remove(packed))
}

func writeStream(dst string, r io.Reader) error {
	f, err := os.OpenFile(dst, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	_, err = io.Copy(f, r)
	return errors.Join(err, f.Close())
}
