package image

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sync/errgroup"

	"github.com/roosthq/roost/internal/fault"
)

// BuildTimeout bounds a build whatever the network does.
const BuildTimeout = 20 * time.Minute

// Progress is one step of a build, reported when it begins and when it has ended. Steps may
// overlap.
type Progress struct {
	// Step for people: "fetch and unpack the kernel".
	Step string
	// Detail is how far a step is that takes long: "312 MB". It is reported any number of times
	// between the step's begin, which has none, and its end.
	Detail string
	Done   bool
	// Err is how the step ended, nil if well.
	Err error
	// Elapsed is how long a done step took.
	Elapsed time.Duration
}

// BuildOptions are not part of the recipe: they change nothing in the template.
type BuildOptions struct {
	// CacheDir keeps downloads between builds; required. Safe to delete at any time.
	CacheDir string
	// Report is called for each step, one call at a time; nil for none.
	Report func(Progress)
}

// Ensure gives the recipe's template, built now unless there is one of the same recipe.
func (s *Store) Ensure(ctx context.Context, r Recipe, o BuildOptions) (Template, error) {
	t, err := s.Template(r.Name)
	if err == nil && t.RecipeDigest == r.Digest() {
		return t, nil
	}
	return s.Build(ctx, r, o)
}

// Build makes the recipe's template with the newest packages and gives it the recipe's name.
// A template that had the name stays, by digest. Cancelling ctx ends every process of the
// build; a failure leaves only the download cache.
func (s *Store) Build(ctx context.Context, r Recipe, o BuildOptions) (t Template, err error) {
	if err := r.Validate(); err != nil {
		return Template{}, err
	}
	if err := needRoot(r.Name); err != nil {
		return Template{}, err
	}
	if t, err := s.Template(r.Name); err == nil && t.Made != nil {
		return Template{}, fault.New(fault.AlreadyExists, "build template", r.Name, "a template made of a sandbox has the name").
			WithHint("delete that one: roost template rm " + r.Name)
	}
	ctx, cancel := context.WithTimeout(ctx, BuildTimeout)
	defer cancel()
	work, err := s.newWorkspace()
	if err != nil {
		return Template{}, err
	}
	defer func() { err = errors.Join(err, work.remove()) }()
	b := &build{store: s, recipe: r, work: work, options: o, steps: steps{to: o.Report}}
	t, err = b.run(ctx)
	return t, fault.Wrap(err, "build template", r.Name)
}

type build struct {
	store   *Store
	recipe  Recipe
	work    *workspace
	options BuildOptions
	steps
}

func (b *build) run(ctx context.Context) (Template, error) {
	d := draft{Template: Template{
		Name: b.recipe.Name, CreatedAt: time.Now().UTC(), RecipeDigest: b.recipe.Digest(), DefaultUser: b.recipe.DefaultUser,
	}}
	var kernel unpackedKernel
	// The kernel waits for the network while the root disk keeps a core busy.
	g, gctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		if kernel, d.kernelDir, err = b.kernel(gctx); err != nil {
			return err
		}
		d.elfDir, err = b.kernelELF(filepath.Join(d.kernelDir, kernelName))
		return err
	})
	g.Go(func() (err error) {
		d.diskDir, d.treeDir, err = b.root(gctx)
		return err
	})
	if err := g.Wait(); err != nil {
		return Template{}, err
	}
	d.KernelVersion = kernel.version
	d.nameFiles(kernel.modules)
	var t Template
	err := b.step("check and publish the template", func() (err error) {
		t, err = b.store.publish(d)
		return err
	})
	return t, err
}

// Names of a template's files; modules have their own.
const (
	kernelName = "vmlinuz"
	elfName    = "vmlinux"
	diskName   = "disk.ext4"
	treeName   = "tree.erofs"
)

// nameFiles lists the draft's files. Modules are without ".ko".
func (d *draft) nameFiles(modules []string) {
	d.Kernel = File{Name: kernelName, Path: filepath.Join(d.kernelDir, kernelName)}
	if d.elfDir != "" {
		d.KernelELF = File{Name: elfName, Path: filepath.Join(d.elfDir, elfName)}
	}
	d.Disk = File{Name: diskName, Path: filepath.Join(d.diskDir, diskName)}
	d.Tree = File{Name: treeName, Path: filepath.Join(d.treeDir, treeName)}
	for _, m := range modules {
		d.Modules = append(d.Modules, File{Name: m + ".ko", Path: filepath.Join(d.kernelDir, m+".ko")})
	}
}

func (b *build) kernel(ctx context.Context) (k unpackedKernel, dir string, err error) {
	err = b.step("fetch and unpack the kernel", func() error {
		cache, work, err := b.dirs("kernel")
		if err != nil {
			return err
		}
		if dir, err = b.work.mkdir("kernel"); err != nil {
			return err
		}
		k, err = makeKernel(ctx, b.recipe, cache, work, dir)
		return err
	})
	return k, dir, err
}

// kernelELF makes the uncompressed kernel. A kernel of which there is none still starts in QEMU: who
// asks for it later is told the reason.
func (b *build) kernelELF(kernel string) (dir string, err error) {
	dir, err = b.form("uncompressed kernel", "vmlinux", func(dir string) error {
		return ELF(kernel, filepath.Join(dir, elfName))
	})
	if fault.Is(err, fault.Invalid) {
		b.store.log.Warn("the template will not start in Firecracker", "template", b.recipe.Name, "error", err)
		return "", nil
	}
	return dir, err
}

// root makes the root directory and of it both forms of the file system.
func (b *build) root(ctx context.Context) (diskDir, treeDir string, err error) {
	var root string
	err = b.step("install packages into the root directory", func() error {
		cache, work, err := b.dirs("packages")
		if err != nil {
			return err
		}
		root, err = makeRoot(ctx, b.recipe, cache, work)
		return err
	})
	if err != nil {
		return "", "", err
	}
	// One only reads while the other writes.
	g, ctx := errgroup.WithContext(ctx)
	g.Go(func() (err error) {
		diskDir, err = b.form("root disk", "disk", func(dir string) error {
			return makeDisk(ctx, b.recipe.form(), root, filepath.Join(dir, diskName))
		})
		return err
	})
	g.Go(func() (err error) {
		treeDir, err = b.form("root tree", "tree", func(dir string) error {
			return makeTree(ctx, b.recipe.form(), root, filepath.Join(dir, treeName))
		})
		return err
	})
	if err := g.Wait(); err != nil {
		return "", "", err
	}
	return diskDir, treeDir, fail(os.RemoveAll(root), "remove", root)
}

// form makes one file of the template, in a directory of its own.
func (b *build) form(what, name string, write func(dir string) error) (dir string, err error) {
	err = b.step("make the "+what, func() error {
		if dir, err = b.work.mkdir(name); err != nil {
			return err
		}
		return write(dir)
	})
	return dir, err
}

// dirs makes a part's download cache and its working directory.
func (b *build) dirs(part string) (cache, work string, err error) {
	if b.options.CacheDir == "" {
		return "", "", fault.New(fault.Invalid, "build template", b.recipe.Name, "no cache directory given")
	}
	cache = filepath.Join(b.options.CacheDir, part)
	if err := os.MkdirAll(cache, 0o700); err != nil {
		return "", "", fail(err, "make cache", cache)
	}
	work, err = b.work.mkdir(part + "-work")
	return cache, work, err
}

func needRoot(name string) error {
	if os.Geteuid() == 0 {
		return nil
	}
	return fault.New(fault.PermissionDenied, "build template", name, "not root").
		WithHint("run it with sudo: the build makes users and device nodes")
}

// steps reports what is being done, one report at a time.
type steps struct {
	to func(Progress)
	mu sync.Mutex
}

func (s *steps) step(name string, f func() error) error {
	s.report(Progress{Step: name})
	start := time.Now()
	err := f()
	s.report(Progress{Step: name, Done: true, Err: err, Elapsed: time.Since(start)})
	return err
}

func (s *steps) report(p Progress) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.to != nil {
		s.to(p)
	}
}
