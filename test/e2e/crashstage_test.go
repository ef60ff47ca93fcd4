package e2e

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/stretchr/testify/require"
	"golang.org/x/sys/unix"

	v1 "github.com/roosthq/roost/api/gen/v1"
	"github.com/roosthq/roost/test/trials"
)

// operation is what is interrupted.
type operation struct {
	// begins is the state that the sandbox must be in.
	begins v1.SandboxState
	// args is its command line.
	args func(s *stage) []string
	// before and after are what else it needs, and what it may have made beside the sandbox: that is
	// looked at and removed.
	before, after func(s *stage)
	// cold: memory may be given up; own: the sandbox is a new one each time.
	cold, own bool
	// run is what is done instead of a command line; it needs a disk of its own.
	run func(s *stage) result
	// images: it makes templates.
	images bool
}

var operations = map[string]operation{
	"create":                   {args: line("create", "--memory-mb", "256"), after: (*stage).dropOthers},
	"create from":              {args: line("create", "kept"), before: (*stage).keepSnapshot, after: (*stage).dropOthers},
	"pause":                    {begins: running, args: onIt("pause")},
	"pause of the disk":        {begins: running, args: onIt("pause", "--disk-only"), cold: true},
	"resume":                   {begins: paused, args: onIt("resume")},
	"rescue":                   {begins: v1.Failed, args: onIt("resume", "--cold"), cold: true},
	"snapshot":                 {begins: running, args: onIt("snapshot", "create", "--name", "made"), after: (*stage).checkSnapshot},
	"snapshot of a paused one": {begins: paused, args: onIt("snapshot", "create", "--name", "made"), after: (*stage).checkSnapshot},
	"snapshot rm":              {begins: running, args: line("snapshot", "rm", "kept"), before: (*stage).keepSnapshot, after: (*stage).noSnapshot},
	"fork":                     {begins: running, args: onIt("fork", "-n", "2"), after: (*stage).checkForks},
	"fork of a paused one":     {begins: paused, args: onIt("fork", "-n", "2"), after: (*stage).checkForks},
	"template":                 {begins: running, args: func(s *stage) []string { return []string{"template", "create", "made", "--from", s.id} }, after: (*stage).dropTemplate, images: true},
	"fill":                     {begins: running, run: (*stage).fillAndDrain, after: (*stage).goesOnByItself},
	"pause when full":          {begins: running, run: (*stage).pauseWhenFull, after: (*stage).goesOnByItself},
	"rm":                       {begins: running, args: onIt("rm"), own: true},
}

func line(args ...string) func(*stage) []string { return func(*stage) []string { return args } }

func onIt(args ...string) func(*stage) []string {
	return func(s *stage) []string { return append(slices.Clone(args), s.id) }
}

// stage is an installation with one sandbox that operations are interrupted on.
type stage struct {
	*roost
	k    kind
	op   operation
	id   string
	want content
}

func newStage(t *testing.T, k kind, op string) *stage {
	t.Helper()
	s := &stage{k: k, op: operations[op]}
	s.roost = install(t, k.flags()...)
	if s.op.images {
		s.ownImages()
	}
	if s.op.run != nil {
		s.ownDisk()
	}
	s.up()
	return s
}

// attempt is the operation.
func (s *stage) attempt() result {
	s.t.Helper()
	if s.op.run != nil {
		return s.op.run(s)
	}
	return s.try(s.op.args(s)...)
}

// succeeds is an attempt that must.
func (s *stage) succeeds() {
	s.t.Helper()
	res := s.attempt()
	require.Equal(s.t, 0, res.code, "%s%s", res.stdout, res.stderr)
}

// rows runs one after the other, on the same sandbox as long as all is well.
func (s *stage) rows(count *trials.Scenario, rows []crash, trial func(*stage, crash)) {
	whole := s.t
	defer func() { s.roost = s.as(whole) }()
	for _, c := range rows {
		passed := count.Trial(c.point, func(t *testing.T) {
			s.roost = s.as(t)
			s.prepare()
			trial(s, c)
			s.goesOn()
		})
		s.roost = s.as(whole)
		if !passed {
			s.startOver(c)
		}
		if count.Failures() >= trials.EnoughFailures {
			return
		}
	}
}

// startOver gives up the sandbox that a row failed on.
func (s *stage) startOver(c crash) {
	s.disarm(c.point)
	s.kill()
	s.up()
	for id := range s.list() {
		s.try("rm", id)
	}
	for name := range s.snapshots() {
		s.try("snapshot", "rm", name)
	}
	s.id = ""
}

// prepare brings the sandbox into the state that the operation begins in.
func (s *stage) prepare() {
	s.t.Helper()
	if s.id == "" || s.op.own {
		s.id = s.run("create", "--memory-mb", "256", "--timeout", "0")
		s.want = s.fill(s.id)
		if s.op.begins == v1.Failed {
			// gVisor goes back to its last capture.
			s.run("pause", s.id)
			s.run("resume", s.id)
		}
	}
	if s.op.before != nil {
		s.op.before(s)
	}
	if s.op.cold && s.op.begins == running {
		s.want = s.fill(s.id) // the last round gave the memory up
	}
	switch s.op.begins {
	case paused:
		s.run("pause", s.id)
	case v1.Failed:
		s.failIt()
	}
}

// failIt kills the sandbox's machine or sentry.
func (s *stage) failIt() {
	s.t.Helper()
	require.NoError(s.t, unix.Kill(s.vmPID(s.id), unix.SIGKILL))
	s.settles(s.id, v1.Failed)
}

// killedAt kills the agent at the step and starts the next one.
func (s *stage) killedAt(c crash) {
	s.arm(c.point, "kill")
	res := s.attempt()
	require.NotZero(s.t, res.code, "the agent dies at the step: %s%s", res.stdout, res.stderr)
	s.dies()
	s.disarm(c.point)
	s.up()
	s.endsAs(c)
}

// failedAt makes the step fail, as long as it is tried.
func (s *stage) failedAt(c crash) {
	s.arm(c.point, "error")
	res := s.attempt()
	s.disarm(c.point)
	if res.code != 0 {
		require.Contains(s.t, res.stderr, "failpoint "+c.point, "the caller is told why")
	}
	if s.op.own {
		s.succeeds() // what could not be ended is ended by whoever comes next
	}
	s.unstick()
	s.endsAs(c, s.op.begins) // also what was committed may be taken back, by who still lives
}

// unstick: what failed after its commit is finished by the collector, within a minute, and the row
// follows at the end of its claim, after minutes. A new start does both at once.
func (s *stage) unstick() {
	s.t.Helper()
	for _, j := range s.journals() {
		if slices.Contains([]string{"pausing", "resuming", "snapshotting"}, j.State) {
			s.t.Logf("the sandbox is %s: the server is started anew", j.State)
			s.stop()
			s.up()
			return
		}
	}
	for _, row := range s.list() {
		if row.State == v1.Pausing || row.State == v1.Resuming {
			s.stop()
			s.up()
			return
		}
	}
}

// endsAs: the sandbox is what the row says, and the installation is sound.
func (s *stage) endsAs(c crash, or ...v1.SandboxState) {
	s.t.Helper()
	s.sound()
	switch {
	case c.op == "create" || c.op == "create from":
	case c.ends == gone:
		require.NotContains(s.t, s.list(), s.id)
		return
	case c.ends == "": // it failed, and is what it was or better
		s.settles(s.id, v1.Failed, paused, running)
	default:
		s.settles(s.id, append(or, c.ends)...)
	}
	if s.op.after != nil {
		s.op.after(s)
	}
}

// goesOn: the sandbox holds what it held, and what was interrupted works now.
func (s *stage) goesOn() {
	s.t.Helper()
	if s.op.own {
		return
	}
	if s.op.begins == v1.Failed {
		if s.info(s.id).State != running {
			s.run("resume", "--cold", s.id)
		}
		s.holdsDisk(s.id, s.want)
		return
	}
	cold := s.op.cold && s.info(s.id).State == paused
	s.wake()
	if !cold {
		s.holds(s.id, s.want)
	}
	s.holdsDisk(s.id, s.want)
	if s.op.begins == paused {
		s.run("pause", s.id)
	}
	s.succeeds()
	if s.op.after != nil {
		s.op.after(s)
	}
	s.wake()
	if !s.op.cold {
		s.holds(s.id, s.want)
	}
	s.sound()
}

func (s *stage) wake() {
	s.t.Helper()
	if s.info(s.id).State == paused {
		s.run("resume", s.id)
	}
}

// dropOthers: sandboxes that nobody was told of are there whole, or not at all.
func (s *stage) dropOthers() {
	s.t.Helper()
	for id, row := range s.list() {
		if id == s.id {
			continue
		}
		require.Equal(s.t, running, row.State)
		require.Equal(s.t, id, s.run("exec", id, "--", "hostname"))
		s.run("rm", id)
	}
}

func (s *stage) keepSnapshot() {
	s.t.Helper()
	if _, found := s.snapshots()["kept"]; !found {
		s.run("snapshot", "create", s.id, "--name", "kept")
	}
}

func (s *stage) noSnapshot() {
	s.t.Helper()
	s.run("snapshot", "rm", "kept") // again is no error
	require.Empty(s.t, s.snapshots())
	s.sound()
	s.keepSnapshot()
}

// checkSnapshot: one that is there is whole.
func (s *stage) checkSnapshot() {
	s.t.Helper()
	for name := range s.snapshots() {
		id := s.run("create", name)
		s.holds(id, s.want)
		s.run("rm", id)
		s.run("snapshot", "rm", name)
	}
	s.sound()
}

// checkForks: those that are there hold what the source held; all of them or none.
func (s *stage) checkForks() {
	s.t.Helper()
	list := s.list()
	delete(list, s.id)
	require.Contains(s.t, []int{0, 2}, len(list), "all or none: %v", list)
	for id, row := range list {
		require.Equal(s.t, running, row.State)
		s.holds(id, s.want)
		s.run("rm", id)
	}
	s.sound()
}

func (s *stage) dropTemplate() {
	s.t.Helper()
	if strings.Contains(s.run("template", "ls"), "made") {
		id := s.run("create", "made")
		s.holds(id, s.want)
		s.run("rm", id)
		s.run("template", "rm", "made")
	}
	s.sound()
}

// ownImages gives an installation that makes templates images of its own: the others' are shared.
// Files are immutable and linked; the lock is not.
func (r *roost) ownImages() {
	r.t.Helper()
	from, to := filepath.Join(templates, "images"), filepath.Join(r.data, "images")
	require.NoError(r.t, os.Remove(to))
	require.NoError(r.t, filepath.WalkDir(from, func(path string, e os.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(from, path)
		switch {
		case err != nil:
			return err
		case name == "lock":
			return nil
		case name == "stage":
			return filepath.SkipDir
		case e.IsDir():
			info, err := e.Info()
			if err != nil {
				return err
			}
			return os.Mkdir(filepath.Join(to, name), info.Mode().Perm())
		case e.Type()&os.ModeSymlink != 0:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			return os.Symlink(target, filepath.Join(to, name))
		}
		return os.Link(path, filepath.Join(to, name))
	}))
}
