package main

import (
	"bytes"
	"context"
	_ "embed"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	v1 "github.com/roosthq/roost/api/gen/v1"
	"github.com/roosthq/roost/bench/harness"
)

//go:embed work/run.py
var workProgram []byte

// shopDir holds the work, in the tree and in the sandbox.
const shopDir = "opt/bench"

// workshop is the same work in two places: on the host, in a copy of the template's file tree
// under chroot, and in sandboxes of that template. What the template lacks (gcc, pip) is copied
// from the host into the tree, and from there into the sandboxes, so that both run the same files.
type workshop struct {
	root string
	// added are the tree's new files, relative to root.
	added []string
	// missing are the works that this machine has no tools for.
	missing map[string]error
	boxes   map[*server]string
}

// errMissing: a figure cannot be measured here.
var errMissing = errors.New("missing on this machine")

func (s *server) openWorkshop(ctx context.Context) (_ *workshop, err error) {
	w := &workshop{boxes: map[*server]string{}, missing: map[string]error{}}
	if w.root, err = os.MkdirTemp("", "roost-work-"); err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			w.close(ctx)
		}
	}()
	tree, err := s.tree(ctx)
	if err != nil {
		return nil, err
	}
	if err := run(ctx, "fsck.erofs", "--extract="+w.root, "--overwrite", tree); err != nil {
		return nil, err
	}
	if err := w.makeDevices(); err != nil {
		return nil, err
	}
	shop := filepath.Join(w.root, shopDir)
	if err := os.MkdirAll(shop, 0o755); err != nil {
		return nil, err
	}
	if err := os.WriteFile(filepath.Join(shop, "run.py"), workProgram, 0o644); err != nil {
		return nil, err
	}
	for name, take := range map[string]func(context.Context) error{"pip": w.copyPip, "gcc": w.copyGCC} {
		if err := take(ctx); errors.Is(err, errMissing) {
			w.missing[name] = err
		} else if err != nil {
			return nil, err
		}
	}
	w.added = append(w.added, shopDir)
	_, err = w.onHost(ctx, "prepare")
	return w, err
}

// tree is the template's image.
func (s *server) tree(ctx context.Context) (string, error) {
	id, err := s.create(ctx, false)
	if err != nil {
		return "", err
	}
	j, err := s.journal(id)
	return j.Template.Tree, errors.Join(err, s.delete(ctx, id))
}

// makeDevices makes what programs expect in /dev.
func (w *workshop) makeDevices() error {
	for name, minor := range map[string]uint32{"null": 3, "zero": 5, "random": 8, "urandom": 9} {
		path := filepath.Join(w.root, "dev", name)
		_ = os.Remove(path)
		if err := unix.Mknod(path, unix.S_IFCHR|0o666, int(unix.Mkdev(1, minor))); err != nil {
			return fmt.Errorf("make %s: %w", path, err)
		}
		if err := os.Chmod(path, 0o666); err != nil {
			return err
		}
	}
	return nil
}

// copyPip copies the pip of the host's Python: it has no compiled parts.
func (w *workshop) copyPip(ctx context.Context) error {
	out, err := exec.CommandContext(ctx, "python3", "-c", "import os, pip; print(os.path.dirname(os.path.dirname(pip.__file__)))").Output()
	if err != nil {
		return fmt.Errorf("%w: pip for Python (package python3-pip)", errMissing)
	}
	to := filepath.Join(w.root, shopDir, "pip")
	if err := os.Mkdir(to, 0o755); err != nil {
		return err
	}
	from := strings.TrimSpace(string(out))
	return run(ctx, "sh", "-c", fmt.Sprintf("tar -C %s --exclude=__pycache__ -cf - pip | tar -C %s -xf -", from, to))
}

var (
	packageVersion = regexp.MustCompile(`\([^)]*\)|:any`)
	packageName    = regexp.MustCompile(`[a-z0-9][a-z0-9+.-]+`)
)

// namesIn are the packages of a dependency line, every alternative among them.
func namesIn(needs string) []string {
	return packageName.FindAllString(packageVersion.ReplaceAllString(needs, ""), -1)
}

// copyGCC copies the files of the host's Debian packages for C, and of all that they need and
// the template has not.
func (w *workshop) copyGCC(ctx context.Context) error {
	packages, err := w.newPackages(ctx, "gcc", "libc6-dev")
	if err != nil {
		return err
	}
	out, err := exec.CommandContext(ctx, "dpkg-query", append([]string{"-L"}, packages...)...).Output()
	if err != nil {
		return fmt.Errorf("list files of %v: %w", packages, err)
	}
	for path := range strings.Lines(string(out)) {
		path = strings.Trim(path, "/\n")
		if strings.HasPrefix(path, "usr/share/") {
			continue // documentation
		}
		_, here := os.Lstat("/" + path)
		if _, err := os.Lstat(filepath.Join(w.root, path)); here == nil && errors.Is(err, os.ErrNotExist) {
			w.added = append(w.added, path)
		}
	}
	copied := exec.CommandContext(ctx, "sh", "-c", "tar -C / --no-recursion -cf - --files-from=- | tar -C "+w.root+" -xf -")
	copied.Stdin = strings.NewReader(strings.Join(w.added, "\n"))
	if said, err := copied.CombinedOutput(); err != nil {
		return fmt.Errorf("copy gcc: %w: %s", err, said)
	}
	return nil
}

// newPackages are packages and those that they need, without those of the template.
func (w *workshop) newPackages(ctx context.Context, names ...string) ([]string, error) {
	status, err := os.ReadFile(filepath.Join(w.root, "var/lib/dpkg/status"))
	if err != nil {
		return nil, err
	}
	out, err := exec.CommandContext(ctx, "dpkg-query", "-W", "-f", "${Package}\t${binary:Package}\t${Pre-Depends},${Depends}\n").Output()
	if err != nil {
		return nil, fmt.Errorf("%w: dpkg's packages: %w", errMissing, err)
	}
	type debian struct{ full, needs string }
	installed := map[string]debian{}
	for line := range strings.Lines(string(out)) {
		if f := strings.SplitN(strings.TrimSpace(line), "\t", 3); len(f) == 3 {
			installed[f[0]] = debian{f[1], f[2]}
		}
	}
	for line := range strings.Lines(string(status)) {
		if has, is := strings.CutPrefix(line, "Package: "); is {
			delete(installed, strings.TrimSpace(has))
		}
	}
	for _, name := range names {
		if _, is := installed[name]; !is {
			return nil, fmt.Errorf("%w: Debian's package %s", errMissing, name)
		}
	}
	var found []string
	for todo := names; len(todo) > 0; todo = todo[1:] {
		p, is := installed[todo[0]]
		if !is {
			continue
		}
		delete(installed, todo[0])
		found = append(found, p.full)
		todo = append(todo, namesIn(p.needs)...)
	}
	return found, nil
}

// onHost does work once, in the tree, with a /proc that goes with it.
func (w *workshop) onHost(ctx context.Context, name string) ([]float64, error) {
	cmd := exec.CommandContext(ctx, "unshare", "--mount", "--root="+w.root, "--mount-proc=/proc", "/usr/bin/python3", "/"+shopDir+"/run.py", name)
	cmd.Dir, cmd.Env = "/", []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "HOME=/root", "LANG=C.UTF-8"}
	var said bytes.Buffer
	cmd.Stderr = &said
	out, err := cmd.Output()
	if err != nil {
		return nil, fmt.Errorf("%s on the host: %w: %s", name, err, said.String())
	}
	return numbers(string(out))
}

// inSandbox does work once, in a sandbox with the machine's number of CPUs (one where it is
// emulated), made and filled at first.
func (w *workshop) inSandbox(ctx context.Context, s *server, name string) ([]float64, error) {
	id, err := w.box(ctx, s)
	if err != nil {
		return nil, err
	}
	out, err := s.execRoot(ctx, id, "/usr/bin/python3", "/"+shopDir+"/run.py", name)
	if err != nil {
		return nil, err
	}
	return numbers(out)
}

func numbers(text string) (out []float64, err error) {
	for _, field := range strings.Fields(text) {
		v, err := strconv.ParseFloat(field, 64)
		if err != nil {
			return nil, err
		}
		out = append(out, v)
	}
	return out, nil
}

func (w *workshop) box(ctx context.Context, s *server) (string, error) {
	if id := w.boxes[s]; id != "" {
		return id, nil
	}
	var want v1.CreateSandbox
	if s.runtime == onGVisor {
		cpus := runtime.NumCPU()
		want.Vcpus = &cpus
	}
	id, err := s.createLike(ctx, want)
	if err != nil {
		return "", err
	}
	w.boxes[s] = id
	return id, w.fill(ctx, s, id)
}

// fill copies what is new in the tree into a sandbox; one that is emulated gets the work's own
// files alone, for it does nothing else in reasonable time.
func (w *workshop) fill(ctx context.Context, s *server, id string) error {
	added := w.added
	if s.runtime == onQEMU {
		added = []string{shopDir + "/run.py"}
		if _, err := s.execRoot(ctx, id, "mkdir", "-p", "/"+shopDir); err != nil {
			return err
		}
	}
	pack := exec.CommandContext(ctx, "sh", "-c", "tar -C "+w.root+" --no-recursion -cf - --files-from=-")
	pack.Stdin = strings.NewReader(strings.Join(w.below(added), "\n"))
	stream, err := pack.StdoutPipe()
	if err != nil {
		return err
	}
	if err := pack.Start(); err != nil {
		return err
	}
	root := "root"
	resp, err := s.api.WriteArchiveWithBodyWithResponse(ctx, id, &v1.WriteArchiveParams{Path: "/", User: &root}, "application/x-tar", stream)
	if err == nil && resp.StatusCode() >= 300 {
		err = fmt.Errorf("fill sandbox: %s", resp.Body)
	}
	_ = stream.Close()
	return errors.Join(err, pack.Wait())
}

// below lists paths with everything in them.
func (w *workshop) below(paths []string) (all []string) {
	for _, path := range paths {
		if path != shopDir {
			all = append(all, path)
			continue
		}
		_ = filepath.WalkDir(filepath.Join(w.root, path), func(p string, _ os.DirEntry, err error) error {
			if rel, _ := filepath.Rel(w.root, p); err == nil {
				all = append(all, rel)
			}
			return err
		})
	}
	return all
}

func (w *workshop) close(ctx context.Context) {
	for s, id := range w.boxes {
		_ = s.delete(ctx, id)
	}
	_ = os.RemoveAll(w.root)
}

func run(ctx context.Context, name string, args ...string) error {
	if out, err := exec.CommandContext(ctx, name, args...).CombinedOutput(); err != nil {
		return fmt.Errorf("%s %v: %w: %s", name, args, err, out)
	}
	return nil
}

// works compares work in the sandboxes of s with the same on the host.
func (all *servers) works(runtime, name string, parts []harness.Part) measure {
	return all.with(runtime, func(s *server) measure {
		return func(ctx context.Context, pairs int) ([]harness.Result, error) {
			w, err := all.workshop(ctx)
			if err != nil {
				return nil, err
			}
			if err := w.missing[name]; err != nil {
				return nil, err
			}
			return harness.RunMany(ctx, harness.Many{
				Parts: parts, Pairs: pairs, Progress: progress, NoControl: runtime == onQEMU,
				A: func(ctx context.Context) ([]float64, error) { return w.inSandbox(ctx, s, name) },
				B: func(ctx context.Context) ([]float64, error) { return w.onHost(ctx, name) },
			})
		}
	})
}
