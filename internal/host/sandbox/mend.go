package sandbox

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"

	"github.com/roosthq/roost/internal/fault"
	"github.com/roosthq/roost/internal/host/runtime"
)

// missed is how many generations a sandbox can have had that a lost journal knew of and its last
// capture does not: each resume, failure and rescue since is one.
const missed = 1000

// lostJournal stands for one that cannot be read.
func (m *Manager) lostJournal(name string, cause error) *journal {
	j := &journal{
		Version: 1, ID: name, State: Failed, Reason: "its journal is damaged: " + fault.Message(cause),
		Slot: noSlot, Generation: missed, BootID: m.boot,
	}
	if len(m.cfg.Runtimes) > 0 {
		j.Runtime = m.cfg.Runtimes[0].Name()
	}
	for _, n := range captureNumbers(m.cfg.Data.Sandbox(name).Captures()) {
		if _, man, err := readCapture(m.cfg.Data.Sandbox(name).Capture(n)); err == nil {
			j.Generation, j.Runtime = max(j.Generation, man.Generation+missed), man.Runtime
			j.TemplateName, j.Template = man.TemplateName, man.Template // which must not be swept away
		}
	}
	j.Isolation = m.runtimeOf(j.Runtime).Isolation()
	return j
}

// captureNumbers are those of what lies in a sandbox's captures, published or superseded.
func captureNumbers(dir string) []int {
	entries, _ := os.ReadDir(dir)
	var out []int
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err == nil && n > 0 {
			out = append(out, n)
		}
	}
	return out
}

// mend makes sandboxes whose journals are damaged paused again, as their last captures have them.
// What may still run of one has to be ended first: no journal names its uid, so it is nobody's.
func (m *Manager) mend(ctx context.Context, broken map[*Sandbox]error) {
	if len(broken) == 0 {
		return
	}
	if err := m.collectProcesses(ctx); err != nil {
		m.log.Error("sandboxes with damaged journals stay failed: something of them may run", "error", err)
		return
	}
	for s, damage := range broken {
		if err := m.mendOne(ctx, s, damage); err != nil {
			m.log.Error("sandbox with a damaged journal stays failed", "sandbox", s.ID(), "error", err)
		}
	}
}

func (m *Manager) mendOne(ctx context.Context, s *Sandbox, damage error) error {
	ctx, leave, err := s.enter(ctx)
	if err != nil {
		return err
	}
	defer leave()
	if err := errors.Join(s.gone(), s.rt.Reap(ctx, s.spec(m))); err != nil {
		return err
	}
	j, err := m.pausedJournal(s, damage)
	if err != nil {
		return err
	}
	if err := s.update(true, func(old *journal) { *old = *j }); err != nil {
		return err
	}
	m.log.Warn("sandbox with a damaged journal is paused as it was last saved", "sandbox", j.ID, "capture", j.Capture)
	return nil
}

// pausedJournal is a new journal for what a sandbox's last capture says of it. Its identity and
// its token are new: nobody knows the old ones.
func (m *Manager) pausedJournal(s *Sandbox, damage error) (*journal, error) {
	n, before, c, man, err := lastCapture(s)
	if err != nil {
		return nil, err
	}
	if salvaged := man.DiskOnly && s.rt.Capabilities().DiskApart; !salvaged {
		before = 0
	}
	if man.TemplateName == "" || man.Template.Digest == "" {
		return nil, fault.New(fault.FailedPrecondition, "read", "capture", "it is of an earlier roost and does not say what sandbox it is of")
	}
	files, err := s.rt.Files(c)
	if err != nil {
		return nil, err
	}
	for _, f := range files {
		if _, err := os.Stat(f); err != nil {
			return nil, fault.Wrap(err, "read", "capture")
		}
	}
	now := m.cfg.Clock()
	return &journal{
		Version: 1, ID: s.ID(), State: Paused, Generation: s.journal().Generation, BootID: m.boot,
		Reason: fmt.Sprintf("its journal was damaged (%s): it is as it was saved at %s, and what came later is lost",
			fault.Message(damage), clockText(man.CreatedAt)),
		TemplateName: man.TemplateName, Template: man.Template, Resources: man.Resources,
		DefaultUser: man.DefaultUser, Envs: man.Envs, IdleTimeout: man.IdleTimeout,
		Runtime: man.Runtime, Isolation: man.Isolation,
		MachineID: newMachineID(), AccessToken: newToken(), ControlToken: man.ControlToken,
		Slot: noSlot, DiskIndex: freeIndex(s.dir.Disk()), Capture: n,
		// It may be the disk of a dead instance that nothing has started from, and the last instance
		// may have left a newer one. Nobody knows, so all stays until the next pause.
		Fallback: before, Mended: true,
		CreatedAt: man.CreatedAt, ActiveAt: now, Usage: m.usageOf(s, n),
	}, nil
}

// lastCapture is the newest of a sandbox's captures that was not superseded, and before the one
// before it; 0 is none.
func lastCapture(s *Sandbox) (n, before int, c runtime.Capture, man manifest, err error) {
	err = fault.New(fault.NotFound, "read", "capture", "there is none")
	numbers := captureNumbers(s.dir.Captures())
	slices.Sort(numbers)
	for _, number := range numbers {
		found, its, e := readCapture(s.dir.Capture(number))
		if errors.Is(e, os.ErrNotExist) {
			continue // superseded: only files that others stand on are left
		}
		if e == nil && its.SandboxID != s.ID() {
			e = fault.New(fault.DataLoss, "read", "capture", "it is of sandbox "+its.SandboxID)
		}
		n, before, c, man, err = number, n, found, its, e
	}
	return n, before, c, man, err
}

var numberPattern = regexp.MustCompile(`[0-9]+$`)

// freeIndex is a number for a live disk that no file in a disk directory has.
func freeIndex(dir string) int {
	free := 0
	names, _ := filepath.Glob(filepath.Join(dir, "*"))
	for _, name := range names {
		if n, err := strconv.Atoi(numberPattern.FindString(filepath.Base(name))); err == nil {
			free = max(free, n+1)
		}
	}
	return free
}
