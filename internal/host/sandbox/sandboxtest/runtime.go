package sandboxtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/paths"
	"github.com/roosthq/roost/internal/host/runtime"
)

// Kind of a fake runtime.
type Kind struct {
	Name      string
	Isolation runtime.Isolation
	Caps      runtime.Capabilities
}

// VM is like a microVM and Sentry like gVisor, whose captures hold memory and disk in one and
// need the build that made them.
var (
	VM = Kind{Name: "fake", Isolation: runtime.Emulated, Caps: runtime.Capabilities{
		GuestBoots: true, FreezesGuest: true, DiskApart: true,
	}}
	Sentry = Kind{Name: "sentry", Isolation: runtime.Sentry, Caps: runtime.Capabilities{
		TakesNamespace: true, FixedDisk: true,
	}}
)

// Runtime keeps runtime.Runtime's contract.
type Runtime struct {
	t    testing.TB
	kind Kind
	// builds is where a Sentry keeps its builds.
	builds string
	mu     sync.Mutex
	build  string
	// vms by uid: what runs on the host.
	vms   map[int]*vm
	hooks map[string]func(context.Context) error
	boots int
}

var (
	_ runtime.Runtime = (*Runtime)(nil)
	_ runtime.Keeper  = (*Runtime)(nil)
)

func newRuntime(t testing.TB, kind Kind, builds string) *Runtime {
	return &Runtime{t: t, kind: kind, builds: builds, vms: map[int]*vm{}, hooks: map[string]func(context.Context) error{}}
}

// On runs f at a step: "boot", "restore", "adopt", "compact", "discard", "reap", "record",
// "freeze", "thaw", "capture", "stop", "link", "salvage", "guest.restore", "guest.freeze", "guest.thaw",
// "guest.stats", "files", "needed", "retire". Its error is the step's. A nil f takes it away.
func (r *Runtime) On(step string, f func(context.Context) error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.hooks[step] = f
}

// Fail makes a step fail with err as often as n says.
func (r *Runtime) Fail(step string, n int, err error) {
	r.On(step, func(context.Context) error {
		if n--; n < 0 {
			return nil
		}
		return err
	})
}

func (r *Runtime) hit(step string) error { return r.at(context.Background(), step) }

func (r *Runtime) at(ctx context.Context, step string) error {
	r.mu.Lock()
	f := r.hooks[step]
	r.mu.Unlock()
	if f == nil {
		return nil
	}
	return f(ctx)
}

// Running are the uids under which a VM runs.
func (r *Runtime) Running() []int {
	r.mu.Lock()
	defer r.mu.Unlock()
	var out []int
	for uid := range r.vms {
		out = append(out, uid)
	}
	slices.Sort(out)
	return out
}

// Boots counts the kernels that were started.
func (r *Runtime) Boots() int {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.boots
}

// Kill ends the VM of a uid as if it had crashed.
func (r *Runtime) Kill(uid int, reason string) { r.kill(uid, reason, false) }

// Note makes the user processes of a uid's VM remember something.
func (r *Runtime) Note(uid int, text string) {
	g := r.vm(uid).guest
	g.mu.Lock()
	defer g.mu.Unlock()
	g.mem.Notes = text
}

// Quiet says how long a uid's guest has seen no output.
func (r *Runtime) Quiet(uid int, d time.Duration) {
	g := r.vm(uid).guest
	g.mu.Lock()
	defer g.mu.Unlock()
	g.idle = d
}

// Memory of a uid's guest.
func (r *Runtime) Memory(uid int) Memory { return r.vm(uid).guest.memory() }

func (r *Runtime) vm(uid int) *vm {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.vms[uid]
}

func (r *Runtime) kill(uid int, reason string, requested bool) {
	r.mu.Lock()
	v := r.vms[uid]
	delete(r.vms, uid)
	r.mu.Unlock()
	if v != nil {
		v.kill(reason, requested)
	}
}

func (r *Runtime) killAll() {
	for _, uid := range r.Running() {
		r.kill(uid, "the test is over", true)
	}
}

// Name implements runtime.Runtime.
func (r *Runtime) Name() string { return r.kind.Name }

// Isolation implements runtime.Runtime.
func (r *Runtime) Isolation() runtime.Isolation { return r.kind.Isolation }

// Capabilities implements runtime.Runtime.
func (r *Runtime) Capabilities() runtime.Capabilities { return r.kind.Caps }

// Identity implements runtime.Runtime.
func (r *Runtime) Identity() map[string]string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return map[string]string{"driver": r.kind.Name, "build": filepath.Base(r.build)}
}

// record is what a capture says of itself.
type record struct {
	// Disk are the layers, bottom first; Memory the files that memory is made of.
	Disk   []string `json:"disk"`
	Memory []string `json:"memory"`
	// Build and DiskMB are what a Sentry's capture is bound to.
	Build  string `json:"build"`
	DiskMB int    `json:"disk_mb"`
	// DiskOnly: there is no memory.
	DiskOnly bool `json:"disk_only"`
}

const memoryFile = "memory.layer"

// Boot implements runtime.Runtime.
func (r *Runtime) Boot(ctx context.Context, spec runtime.Spec, opts runtime.BootOptions) (runtime.Instance, error) {
	if err := r.at(ctx, "boot"); err != nil {
		return nil, err
	}
	r.mu.Lock()
	r.boots++
	r.mu.Unlock()
	mem, err := r.guestOf(spec)
	if err != nil {
		return nil, err
	}
	stack, err := r.bootStack(opts.From)
	if err != nil {
		return nil, err
	}
	in, err := r.start(spec, stack, mem, r.current())
	if err != nil {
		return nil, err
	}
	in.template = opts.Template
	in.vm.wire.set(false)
	return in, nil
}

// bootStack is the disk that a kernel boots over.
func (r *Runtime) bootStack(from *runtime.Capture) ([]string, error) {
	if from == nil {
		return nil, nil
	}
	rec, err := r.parse(*from)
	if err == nil && !rec.DiskOnly && !r.kind.Caps.DiskApart {
		err = fault.New(fault.FailedPrecondition, "boot", "capture", "memory and disk are one")
	}
	for _, path := range rec.Disk {
		if _, e := os.Stat(path); e != nil {
			err = errors.Join(err, e)
		}
	}
	return rec.Disk, err
}

// guestOf is what the guest of a boot knows: the spec must bring what this kind needs, and
// nothing else.
func (r *Runtime) guestOf(spec runtime.Spec) (Memory, error) {
	if !r.kind.Caps.GuestBoots {
		g := spec.Guest
		if spec.Initrd != "" || g.Path == "" || g.Token == "" || g.Hostname == "" || g.DNS == "" || g.DefaultUser == "" {
			return Memory{}, fmt.Errorf("the spec's guest is %+v, its initramfs %q", g, spec.Initrd)
		}
		if _, err := os.Stat(spec.Template.Tree); err != nil {
			return Memory{}, err
		}
		return Memory{Control: g.Token, Frozen: true}, nil
	}
	if spec.Guest != (runtime.Guest{}) {
		return Memory{}, fmt.Errorf("a guest that boots was given as %+v", spec.Guest)
	}
	raw, err := os.ReadFile(spec.Initrd)
	return Memory{Control: tokenIn(raw), Frozen: true}, err
}

// Restore implements runtime.Runtime.
func (r *Runtime) Restore(ctx context.Context, spec runtime.Spec, from runtime.Capture) (runtime.Instance, error) {
	if err := r.at(ctx, "restore"); err != nil {
		return nil, err
	}
	rec, err := r.parse(from)
	if err != nil {
		return nil, err
	}
	if rec.DiskOnly {
		return nil, fault.New(fault.FailedPrecondition, "restore", "capture", "it holds the disk alone")
	}
	if r.kind.Caps.FixedDisk && rec.DiskMB != spec.Resources.DiskSizeMB {
		return nil, fmt.Errorf("the capture's disk has %d MB, not %d", rec.DiskMB, spec.Resources.DiskSizeMB)
	}
	for _, path := range rec.files() {
		if _, err := os.Stat(path); err != nil {
			return nil, err
		}
	}
	var mem Memory
	raw, err := os.ReadFile(rec.Memory[len(rec.Memory)-1])
	if err == nil {
		err = json.Unmarshal(raw, &mem)
	}
	if err != nil {
		return nil, err
	}
	in, err := r.start(spec, rec.Disk, mem, rec.Build)
	if err != nil {
		return nil, err
	}
	in.vm.wire.set(r.kind.Caps.FreezesGuest)
	return in, nil
}

func (r *Runtime) start(spec runtime.Spec, stack []string, mem Memory, build string) (*instance, error) {
	if old := r.vm(spec.UID); old != nil || spec.UID == 0 {
		return nil, fmt.Errorf("uid %d is not free", spec.UID)
	}
	live := livePath(spec)
	if slices.Contains(stack, live) {
		return nil, errors.New("the live disk would replace a layer that it stands on")
	}
	if err := r.makeLive(live); err != nil {
		return nil, err
	}
	v, err := startVM(r, spec, live, mem)
	if err != nil {
		return nil, errors.Join(err, os.RemoveAll(live))
	}
	v.build = build
	r.mu.Lock()
	r.vms[spec.UID] = v
	r.mu.Unlock()
	return &instance{rt: r, vm: v, stack: stack}, nil
}

// makeLive makes a live disk: a file, or with a kernel that is a process a directory of its own.
func (r *Runtime) makeLive(path string) error {
	if r.kind.Caps.GuestBoots {
		return os.WriteFile(path, nil, 0o600)
	}
	return errors.Join(os.Mkdir(path, 0o700), os.WriteFile(filepath.Join(path, "filestore"), make([]byte, 8192), 0o600))
}

func livePath(spec runtime.Spec) string {
	return filepath.Join(spec.DiskDir, fmt.Sprintf("live-%d", spec.DiskIndex))
}

func (r *Runtime) parse(c runtime.Capture) (record, error) {
	var rec record
	if err := json.Unmarshal(c.Record, &rec); err != nil {
		return rec, err
	}
	for _, list := range [][]string{rec.Disk, rec.Memory} {
		for i, path := range list {
			if !filepath.IsAbs(path) {
				list[i] = filepath.Join(c.Dir, path)
			}
		}
	}
	return rec, nil
}

// handle is an instance's record.
type handle struct {
	UID   int      `json:"uid"`
	Stack []string `json:"stack"`
	Live  string   `json:"live"`
	Build string   `json:"build"`
}

// Adopt implements runtime.Runtime.
func (r *Runtime) Adopt(ctx context.Context, spec runtime.Spec, raw json.RawMessage) (runtime.Instance, error) {
	if err := r.at(ctx, "adopt"); err != nil {
		return nil, err
	}
	var h handle
	if err := json.Unmarshal(raw, &h); err != nil {
		return nil, err
	}
	v := r.vm(h.UID)
	if v == nil || h.UID != spec.UID {
		return nil, fault.New(fault.NotFound, "adopt", "vm", "it is gone")
	}
	return &instance{rt: r, vm: v, stack: h.Stack}, nil
}

// Discard implements runtime.Runtime.
func (r *Runtime) Discard(ctx context.Context, spec runtime.Spec) error {
	if err := r.at(ctx, "discard"); err != nil {
		return err
	}
	if err := r.Reap(ctx, spec); err != nil {
		return err
	}
	return os.RemoveAll(livePath(spec))
}

// Reap implements runtime.Runtime.
func (r *Runtime) Reap(ctx context.Context, spec runtime.Spec) error {
	if err := r.at(ctx, "reap"); err != nil {
		return err
	}
	r.kill(spec.UID, "killed", true)
	return nil
}

// Compact implements runtime.Runtime: it merges the layers that lie in the sandbox's directory
// into one when there are 8 or more, and files of memory into one in the capture's from 16 on.
func (r *Runtime) Compact(ctx context.Context, spec runtime.Spec, c runtime.Capture) (json.RawMessage, bool, error) {
	if err := r.at(ctx, "compact"); err != nil {
		return nil, false, err
	}
	rec, err := r.parse(c)
	const deepest, most = 8, 16
	disk, memory := len(rec.Disk) >= deepest, len(rec.Memory) >= most
	if err != nil || !disk && !memory {
		return nil, false, err
	}
	if disk {
		merged := filepath.Join(spec.DiskDir, fmt.Sprintf("merged-%d", spec.DiskIndex))
		if err := os.WriteFile(merged, nil, 0o400); err != nil {
			return nil, false, err
		}
		rec.Disk = append(slices.DeleteFunc(rec.Disk, func(p string) bool { return filepath.Dir(p) == spec.DiskDir }), merged)
	}
	if memory {
		if err := mergeMemory(&rec, c.Dir); err != nil {
			return nil, false, err
		}
	}
	raw, err := json.Marshal(rec)
	return raw, true, err
}

func mergeMemory(rec *record, dir string) error {
	raw, err := os.ReadFile(rec.Memory[len(rec.Memory)-1])
	if err != nil {
		return err
	}
	rec.Memory = []string{"merged.layer"}
	return os.WriteFile(filepath.Join(dir, rec.Memory[0]), raw, 0o400)
}

// ConsoleOf implements runtime.Runtime.
func (r *Runtime) ConsoleOf(runtime.Spec) ([]byte, error) { return []byte("console"), nil }

// Files implements runtime.Runtime.
func (r *Runtime) Files(c runtime.Capture) ([]string, error) {
	rec, err := r.parse(c)
	return rec.files(), errors.Join(err, r.hit("files"))
}

// Link implements runtime.Runtime.
func (r *Runtime) Link(ctx context.Context, c runtime.Capture, dir, root string) (json.RawMessage, error) {
	if err := r.at(ctx, "link"); err != nil {
		return nil, err
	}
	rec, err := r.parse(c)
	if err != nil {
		return nil, err
	}
	for kind, list := range map[string][]string{"disk": rec.Disk, "memory": rec.Memory} {
		for i, path := range list {
			if _, below, err := paths.Below(path, root); err != nil {
				return nil, err
			} else if !below {
				continue
			}
			list[i] = fmt.Sprintf("linked-%s-%d", kind, i)
			if err := link(path, filepath.Join(dir, list[i])); err != nil {
				return nil, err
			}
		}
	}
	return json.Marshal(rec)
}

// link is a hard link, or for a directory a copy of it made of hard links. One that is there
// already is the same.
func link(path, to string) error {
	err := os.Link(path, to)
	if errors.Is(err, os.ErrExist) {
		return nil
	}
	return err
}

// Salvage implements runtime.Runtime.
func (r *Runtime) Salvage(ctx context.Context, spec runtime.Spec, raw json.RawMessage, _ string) (json.RawMessage, error) {
	if err := r.at(ctx, "salvage"); err != nil {
		return nil, err
	}
	if !r.kind.Caps.DiskApart {
		return nil, fault.New(fault.FailedPrecondition, "salvage", "disk", "it ended with its sandbox")
	}
	var h handle
	if err := json.Unmarshal(raw, &h); err != nil {
		return nil, err
	}
	if r.vm(spec.UID) != nil {
		return nil, errors.New("it still runs")
	}
	return json.Marshal(record{Disk: append(h.Stack, h.Live), DiskOnly: true})
}

func (rec record) files() []string {
	out := append(slices.Clone(rec.Disk), rec.Memory...)
	if rec.Build != "" {
		out = append(out, rec.Build)
	}
	return out
}

// Cut takes the network from a uid's VM, or gives it back: its guest neither hears nor answers.
func (r *Runtime) Cut(uid int, cut bool) { r.vm(uid).wire.set(cut) }

// Halt makes a uid's VM say that it cannot run; "" takes it back.
func (r *Runtime) Halt(uid int, why string) {
	v := r.vm(uid)
	v.mu.Lock()
	defer v.mu.Unlock()
	v.halt = why
}
