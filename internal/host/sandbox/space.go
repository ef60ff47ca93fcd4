package sandbox

import (
	"fmt"
	"math"
	"sync"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/fault"
)

// Fill is how full the file system is that sandboxes lie on.
type Fill string

// The states of it.
const (
	FillOK      Fill = "ok"
	FillFilling Fill = "filling"
	// FillFull: nothing new is made, and who writes fastest stands still, until it is below
	// DiskLimits.Resume again.
	FillFull Fill = "full"
)

// DiskLimits are the shares of the file system, in percent, at which something happens.
type DiskLimits struct {
	// Warn is said once; from Full on creates and snapshots are refused and writers are frozen;
	// below Resume they go on.
	Warn, Full, Resume float64
	// The reserve is Share percent of the file system, at least Least and at most Most bytes, and never
	// more than is left at Full.
	Share       float64
	Least, Most int64
}

// DefaultDiskLimits hold where Config says nothing else.
var DefaultDiskLimits = DiskLimits{Warn: 80, Full: 95, Resume: 90, Share: 1, Least: 64 << 20, Most: 1 << 30}

// lull is by how many percent the disk must be emptier than Warn to be called ok again, so that one
// crossing is said once.
const lull = 2

// reserveFor is the size of the reserve on a file system.
func (l DiskLimits) reserveFor(total int64) int64 {
	want := int64(float64(total) * l.Share / 100)
	most := int64(float64(total) * (100 - l.Full) / 100)
	return min(max(want, l.Least), l.Most, most)
}

// after is the state that follows at a fill.
func (l DiskLimits) after(was Fill, percent float64) Fill {
	switch {
	case percent >= l.Full, was == FillFull && percent >= l.Resume:
		return FillFull
	case percent >= l.Warn, was != FillOK && percent >= l.Warn-lull:
		return FillFilling
	default:
		return FillOK
	}
}

// Space is a file system's, in bytes. Free is what may be written by who is not root, as sandboxes
// are; Total is what they have or could have.
type Space struct{ Total, Free int64 }

// SpaceOf measures the file system of a path.
func SpaceOf(path string) (Space, error) {
	var st unix.Statfs_t
	if err := unix.Statfs(path, &st); err != nil {
		return Space{}, fault.Wrap(err, "measure", "file system of "+path)
	}
	used, free := st.Blocks-st.Bfree, min(st.Bavail, math.MaxInt64>>13)
	return Space{Total: int64(used+free) * st.Bsize, Free: int64(free) * st.Bsize}, nil //nolint:gosec // a disk's size
}

// Disk describes the file system that sandboxes lie on.
type Disk struct {
	Path string
	Space
	// UsedPercent counts what is missing of the reserve as used: giving it back makes no room for
	// anything but the pause that it is for.
	UsedPercent            float64
	State                  Fill
	Limits                 DiskLimits
	Reserve, ReserveWanted int64
	// Frozen are the sandboxes that stand still because of it.
	Frozen []string
}

// Text is the fill for people.
func (d Disk) Text() string {
	return fmt.Sprintf("%.0f %% full (%s of %s free under %s)", math.Floor(d.UsedPercent), sizeText(d.Free), sizeText(d.Total), d.Path)
}

func sizeText(n int64) string {
	if n < 1<<30 {
		return fmt.Sprintf("%d MiB", n>>20)
	}
	return fmt.Sprintf("%.1f GiB", float64(n)/(1<<30))
}

// MakeRoom is what to do about a full disk.
const MakeRoom = "free space on the host: `roost rm` and `roost snapshot rm` what nobody needs, `roost doctor leaks --fix`, or give the data a larger disk"

// gauge remembers what was last seen of the file system.
type gauge struct {
	mu   sync.Mutex
	last Disk
	// crossed wakes the loop when somebody else has seen another state first.
	crossed chan struct{}
	// reserving is held while the reserve is made or given back.
	reserving sync.Mutex
	// unreservable: the file system has no fallocate.
	unreservable bool
	// passing is held for a pass of the loop; it guards growth.
	passing sync.Mutex
	growth  growth
	// busy are the sandboxes that are being held or let go.
	busy sync.Map
}

// Disk measures the file system now.
func (m *Manager) Disk() (Disk, error) {
	d, err := m.look()
	for _, s := range m.list() {
		if j := s.journal(); j.Held != nil {
			d.Frozen = append(d.Frozen, j.ID)
		}
	}
	return d, err
}

// look measures the file system and says once what has changed.
func (m *Manager) look() (Disk, error) {
	g := &m.gauge
	g.mu.Lock()
	defer g.mu.Unlock()
	path, limits := m.cfg.Data.Sandboxes(), m.cfg.DiskLimits
	space, err := m.cfg.SpaceOf(path)
	if err != nil || space.Total == 0 {
		return Disk{Path: path, State: FillOK, Limits: limits}, err
	}
	d := Disk{
		Path: path, Space: space, Limits: limits,
		Reserve: m.reserved(), ReserveWanted: limits.reserveFor(space.Total),
	}
	if g.unreservable {
		d.ReserveWanted = d.Reserve
	}
	left := max(space.Free-max(d.ReserveWanted-d.Reserve, 0), 0)
	d.UsedPercent = 100 * (1 - float64(left)/float64(space.Total))
	d.State = limits.after(g.last.State, d.UsedPercent)
	m.sayCrossing(g.last.State, d)
	if d.State != g.last.State {
		select {
		case g.crossed <- struct{}{}:
		default:
		}
	}
	g.last = d
	return d, nil
}

// sayCrossing logs a state that is not the one before.
func (m *Manager) sayCrossing(was Fill, d Disk) {
	args := []any{"path", d.Path, "used_percent", math.Floor(d.UsedPercent*10) / 10, "free_bytes", d.Free}
	switch {
	case d.State == was || was == "" && d.State == FillOK:
	case d.State == FillFull:
		m.log.Error("the host's disk is full: creates and snapshots are refused, the fastest writers are frozen", append(args, "hint", MakeRoom)...)
	case d.State == FillFilling:
		m.log.Warn("the host's disk is filling", append(args, "refused_from_percent", d.Limits.Full)...)
	default:
		m.log.Info("the host's disk has room again", args...)
	}
}

// room refuses to make something new on a full disk.
func (m *Manager) room(op, object string) error {
	d, err := m.look()
	if err != nil || d.State != FillFull {
		return err
	}
	return fault.New(fault.ResourceExhausted, op, object, "the host's disk is "+d.Text()).
		WithHint(fmt.Sprintf("nothing new is made from %.0f %% until it is below %.0f %%: %s", d.Limits.Full, d.Limits.Resume, MakeRoom))
}

// resumeNeeds is what a start over layers writes at once: a disk's header, a console, a journal.
const resumeNeeds = 16 << 20

// roomToResume refuses a resume only where it could not be carried out: it is somebody's way to data
// that is theirs, and takes next to nothing until the sandbox writes, which freezes it. A runtime
// with memory and disk in one writes the disk anew first.
func (m *Manager) roomToResume(s *Sandbox) error {
	d, err := m.look()
	if err != nil || d.State != FillFull {
		return err
	}
	needs := int64(resumeNeeds)
	if !s.rt.Capabilities().DiskApart {
		total, _ := linkedUse(s.dir.Capture(s.journal().Capture))
		needs += total
	}
	if d.Free >= needs {
		return nil
	}
	return fault.New(fault.ResourceExhausted, "", "", fmt.Sprintf("the host's disk is %s, and this needs %s", d.Text(), sizeText(needs))).
		WithHint("it stays " + string(s.journal().State) + "; " + MakeRoom)
}
