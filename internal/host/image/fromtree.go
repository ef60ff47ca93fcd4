package image

import (
	"context"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/roosthq/roost/internal/fault"
)

// Made says where a template that was made of a sandbox comes from.
type Made struct {
	// By is the installation that made it; several may share a store.
	By string `json:"by"`
	// Operation is the caller's name for the making, "" if it has none.
	Operation string `json:"operation,omitempty"`
}

// FromTreeRequest says what to make a template of.
type FromTreeRequest struct {
	// Name of the template, which must be free.
	Name string
	// By is the id of this installation.
	By string
	// Operation, when set, makes a repetition answer with the template that there is by then.
	Operation string
	// Source gives kernel, modules and default user.
	Source Template
	// Tar is the stream of a guest's export, read to its end. Nothing in it is believed.
	Tar io.Reader
	// MaxBytes bounds what it may hold on top of as much as the Source's tree, holes aside;
	// MaxEntries bounds its files. 0 is a default.
	MaxBytes   int64
	MaxEntries int
	// Report is called for each step, one call at a time; nil for none.
	Report func(Progress)
}

const (
	defaultMaxBytes   = 256 << 30
	defaultMaxEntries = 4 << 20
	// madeSlackMB is free space on the disk as made; it takes none on the host.
	madeSlackMB = 128
)

// FromTree makes a template of a file tree: both forms of it, as small as the content. Cancelling
// ctx ends it; a failure leaves nothing. The Tar's own Read must end with the caller's context too.
func (s *Store) FromTree(ctx context.Context, r FromTreeRequest) (t Template, err error) {
	if err := r.validate(); err != nil {
		return Template{}, err
	}
	if t, done, err := s.repeated(r); done || err != nil {
		return t, err
	}
	work, err := s.newWorkspace()
	if err != nil {
		return Template{}, err
	}
	defer func() { err = errors.Join(err, work.remove()) }()
	m := &making{store: s, request: r, work: work, steps: steps{to: r.Report}}
	t, err = m.run(ctx)
	return t, fault.Wrap(err, "make template", r.Name)
}

func (r FromTreeRequest) validate() error {
	if err := errors.Join(ValidName(r.Name), needRoot(r.Name)); err != nil {
		return err
	}
	bad := func(why string) error { return fault.New(fault.Invalid, "make template", r.Name, why) }
	switch {
	case r.By == "":
		return bad("it is not said by which installation")
	case r.Tar == nil:
		return bad("there is no stream of files")
	case r.Source.Kernel.Path == "":
		return bad("there is no template to take the kernel of")
	case r.MaxBytes < 0 || r.MaxEntries < 0:
		return bad("a bound is negative")
	}
	return nil
}

// repeated answers who asks again, and refuses a name that is taken before anything is read.
func (s *Store) repeated(r FromTreeRequest) (t Template, done bool, err error) {
	t, err = s.Template(r.Name)
	switch {
	case fault.Is(err, fault.NotFound):
		return Template{}, false, nil
	case err != nil:
		return Template{}, false, err
	case r.Operation != "" && t.Made != nil && *t.Made == Made{By: r.By, Operation: r.Operation}:
		return t, true, nil
	}
	return Template{}, false, taken(r.Name)
}

// making is one template being made.
type making struct {
	store   *Store
	request FromTreeRequest
	work    *workspace
	steps
}

func (m *making) run(ctx context.Context) (Template, error) {
	root, err := m.work.mkdir("root")
	if err != nil {
		return Template{}, err
	}
	newest, err := m.unpack(ctx, root)
	if err != nil {
		return Template{}, err
	}
	src := m.request.Source
	d := draft{Template: Template{
		Name: m.request.Name, CreatedAt: time.Now().UTC(), DefaultUser: src.DefaultUser, KernelVersion: src.KernelVersion,
		Made: &Made{By: m.request.By, Operation: m.request.Operation},
	}}
	if d.kernelDir, d.elfDir, err = m.kernel(); err != nil {
		return Template{}, err
	}
	f := rootForm{
		// Two makers' templates are never the same: each can remove its own.
		name: m.request.By + "/" + m.request.Name, slackMB: madeSlackMB, epoch: strconv.FormatInt(newest, 10),
	}
	if err := m.forms(ctx, f, root, &d); err != nil {
		return Template{}, err
	}
	d.nameFiles(moduleStems(src))
	d.Disk.Sparse, d.Tree.Sparse = true, true
	var t Template
	err = m.step("check and publish the template", func() (err error) {
		if err := ctx.Err(); err != nil {
			return err
		}
		t, err = m.store.publish(d)
		return err
	})
	return t, err
}

func moduleStems(t Template) []string {
	names := t.ModuleNames()
	for i, name := range names {
		names[i] = strings.TrimSuffix(name, ".ko")
	}
	return names
}

// unpack returns the newest time of a file, in seconds.
func (m *making) unpack(ctx context.Context, root string) (newest int64, err error) {
	const name = "unpack the files"
	err = m.step(name, func() error {
		u, err := newUnpacker(ctx, root, m.request)
		if err != nil {
			return err
		}
		u.progress = func(n int64) { m.report(Progress{Step: name, Detail: strconv.FormatInt(n>>20, 10) + " MB"}) }
		err = errors.Join(u.run(m.request.Tar), u.close())
		newest = u.newest
		if err != nil {
			return err
		}
		return fail(makeMountPoints(root), "make mount points in", root)
	})
	return newest, err
}

// kernel is the source's, by hard links: publishing finds that its blobs are there.
func (m *making) kernel() (dir, elfDir string, err error) {
	src := m.request.Source
	if dir, err = m.link("kernel", append([]File{src.Kernel}, src.Modules...)); err != nil || !src.hasELF() {
		return dir, "", err
	}
	elfDir, err = m.link("vmlinux", []File{src.KernelELF})
	return dir, elfDir, err
}

func (m *making) link(name string, files []File) (dir string, err error) {
	if dir, err = m.work.mkdir(name); err != nil {
		return "", err
	}
	for _, f := range files {
		if err := f.Verify(); err != nil {
			return "", err
		}
		if err := linkOrCopy(f.Path, filepath.Join(dir, f.Name)); err != nil {
			return "", fail(err, "link", f.Path)
		}
	}
	return dir, nil
}

// forms makes the disk first: for the tree, files with holes are taken out of the root.
func (m *making) forms(ctx context.Context, f rootForm, root string, d *draft) error {
	err := m.form("disk", &d.diskDir, func(dir string) error {
		return makeDisk(ctx, f, root, filepath.Join(dir, diskName))
	})
	if err != nil {
		return err
	}
	err = m.form("tree", &d.treeDir, func(dir string) error {
		aside, err := m.work.mkdir("holes")
		if err != nil {
			return err
		}
		return makeSparseTree(ctx, f, root, aside, filepath.Join(dir, treeName))
	})
	if err != nil {
		return err
	}
	return fail(os.RemoveAll(root), "remove", root)
}

func (m *making) form(name string, dir *string, write func(dir string) error) error {
	return m.step("make the root "+name, func() (err error) {
		if *dir, err = m.work.mkdir(name); err != nil {
			return err
		}
		return write(*dir)
	})
}
