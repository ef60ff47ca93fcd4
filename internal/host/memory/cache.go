package memory

import (
	"context"
	"errors"
	"os"
	"sort"
	"sync"
	"time"

	"github.com/roosthq/roost/internal/fault"
)

// Cache holds one sealed memfd per template file for all sandboxes of a host. A template stays
// while someone uses it and, until Evict, after that. Safe for concurrent use.
type Cache struct {
	mu      sync.Mutex
	entries map[string]*entry
	// now is the clock.
	now func() time.Time
}

// entry is one template. loaded is closed when file and info, or err, are set.
type entry struct {
	path   string
	loaded chan struct{}
	file   *os.File
	info   Info
	err    error
	refs   int
	unused time.Time
}

// NewCache returns an empty cache.
func NewCache() *Cache {
	return &Cache{entries: map[string]*entry{}, now: time.Now}
}

// Template is one user's hold on a template's memory.
type Template struct {
	// File is the sealed memfd; it belongs to the cache and is open until Release.
	File *os.File
	Info Info

	release func()
}

// Release lets go of the template. Idempotent.
func (t *Template) Release() { t.release() }

// Get returns the memory of the template whose file is at path, loading it on first use. Who
// comes while it is loaded waits; a failed load is tried again by the next caller.
func (c *Cache) Get(ctx context.Context, path string, bytes int64) (*Template, error) {
	e, mine := c.claim(path)
	if mine {
		// The load serves others too: one caller that gives up must not fail them.
		go func() {
			f, info, err := Load(context.WithoutCancel(ctx), path, bytes)
			c.settle(e, f, info, err)
		}()
	}
	return c.wait(ctx, e, bytes)
}

// Put adds a memfd that was taken back from a running VM after an agent restart. It is checked
// against the template's file, byte for byte: what a VMM hands out is not trusted. The
// cache owns f from now on, whatever happens; when it has the template already f is closed.
func (c *Cache) Put(ctx context.Context, path string, bytes int64, f *os.File) (*Template, error) {
	e, mine := c.claim(path)
	if !mine {
		t, err := c.wait(ctx, e, bytes)
		_ = f.Close() // a second descriptor of sealed memory: nothing can be lost
		return t, err
	}
	info, err := verifyFile(ctx, path, bytes, f)
	if err != nil {
		err = fault.Wrap(errors.Join(err, f.Close()), "take back the memory of template", path)
		f = nil
	}
	c.settle(e, f, info, err)
	return c.wait(ctx, e, bytes)
}

func verifyFile(ctx context.Context, path string, bytes int64, f *os.File) (Info, error) {
	src, t, id, err := openTemplate(path, bytes)
	if err != nil {
		return Info{}, err
	}
	err = errors.Join(t.verify(ctx, f), src.Close())
	return Info{id, bytes, t.usedPages() * PageSize}, err
}

// claim returns the entry of a path with one more reference; mine says that it is new and the
// caller's to settle.
func (c *Cache) claim(path string) (e *entry, mine bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e, found := c.entries[path]
	if !found {
		e = &entry{path: path, loaded: make(chan struct{})}
		c.entries[path] = e
	}
	e.refs++
	return e, !found
}

func (c *Cache) settle(e *entry, f *os.File, info Info, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e.file, e.info, e.err = f, info, err
	if err != nil {
		delete(c.entries, e.path)
	}
	close(e.loaded)
}

func (c *Cache) wait(ctx context.Context, e *entry, bytes int64) (*Template, error) {
	var err error
	select {
	case <-e.loaded:
		if err = e.err; err == nil && e.info.Bytes != bytes {
			err = fault.New(fault.FailedPrecondition, "get template memory", e.path, "it is loaded with another size")
		}
	case <-ctx.Done():
		err = ctx.Err()
	}
	if err != nil {
		c.drop(e)
		return nil, err
	}
	return &Template{e.file, e.info, sync.OnceFunc(func() { c.drop(e) })}, nil
}

func (c *Cache) drop(e *entry) {
	c.mu.Lock()
	defer c.mu.Unlock()
	e.refs--
	e.unused = c.now()
}

// Evict gives back the RAM of templates that nobody has used for at least idle and returns
// how many they were.
func (c *Cache) Evict(idle time.Duration) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	n := 0
	var errs []error
	for path, e := range c.entries {
		if e.refs > 0 || e.file == nil || c.now().Sub(e.unused) < idle {
			continue
		}
		delete(c.entries, path)
		errs = append(errs, e.file.Close())
		n++
	}
	return n, errors.Join(errs...)
}

// Loaded describes a template in the cache.
type Loaded struct {
	Path string
	Info Info
	// Users hold it now. ResidentBytes is the RAM it takes, counted once for all of them.
	Users         int
	ResidentBytes int64
}

// List describes what the cache holds, by path.
func (c *Cache) List() []Loaded {
	c.mu.Lock()
	defer c.mu.Unlock()
	var out []Loaded
	for _, e := range c.entries {
		if e.file != nil {
			out = append(out, Loaded{e.path, e.info, e.refs, resident(e.file)})
		}
	}
	sort.Slice(out, func(i, j int) bool { return out[i].Path < out[j].Path })
	return out
}
