package process

import (
	"errors"
	"os"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/roosthq/roost/internal/guest/account"
)

// Size is a terminal's size in characters.
type Size struct{ Cols, Rows uint16 }

// streams are the two sides of a process's standard files. The child's side is blocking (it
// belongs to programs that expect so), ours is polled, which gives it deadlines.
type streams struct {
	child  [3]int
	closes []int // child descriptors to close once the child has them

	in       *os.File // nil without input
	out, err *os.File // nil with a terminal
	terminal *os.File // nil without
}

func openStreams(spec Spec) (*streams, error) {
	s := &streams{}
	var err error
	if spec.Terminal != nil {
		err = s.openTerminal(*spec.Terminal, spec.User)
	} else {
		err = s.openPipes(spec.Stdin)
	}
	if err != nil {
		s.closeChild()
		s.closeAll()
		return nil, account.FromOS(err, "open streams of", "'"+spec.Cmd+"'")
	}
	return s, nil
}

func (s *streams) openPipes(stdin bool) (err error) {
	if s.out, s.child[1], err = s.pipe(true); err != nil {
		return err
	}
	if s.err, s.child[2], err = s.pipe(true); err != nil {
		return err
	}
	if stdin {
		s.in, s.child[0], err = s.pipe(false)
		return err
	}
	null, err := unix.Open("/dev/null", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	s.child[0], s.closes = null, append(s.closes, null)
	return err
}

// pipe returns our end and the child's; we read, or write.
func (s *streams) pipe(weRead bool) (*os.File, int, error) {
	var fds [2]int
	if err := unix.Pipe2(fds[:], unix.O_CLOEXEC); err != nil {
		return nil, -1, err
	}
	ours, theirs := fds[0], fds[1]
	if !weRead {
		ours, theirs = theirs, ours
	}
	s.closes = append(s.closes, theirs)
	if err := unix.SetNonblock(ours, true); err != nil {
		_ = unix.Close(ours)
		return nil, -1, err
	}
	return os.NewFile(uintptr(ours), "pipe"), theirs, nil
}

// openTerminal opens both sides itself, by raw descriptors: os.File.Fd, which the usual pty
// packages call, makes the master blocking, and a blocked read has no deadline.
func (s *streams) openTerminal(size Size, user account.User) error {
	fd, err := unix.Open("/dev/ptmx", unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	s.terminal = os.NewFile(uintptr(fd), "terminal")
	s.in = s.terminal
	if err := unix.IoctlSetPointerInt(fd, unix.TIOCSPTLCK, 0); err != nil {
		return err
	}
	number, err := unix.IoctlGetUint32(fd, unix.TIOCGPTN)
	if err != nil {
		return err
	}
	slave, err := unix.Open("/dev/pts/"+strconv.Itoa(int(number)), unix.O_RDWR|unix.O_NOCTTY|unix.O_CLOEXEC, 0)
	if err != nil {
		return err
	}
	s.child, s.closes = [3]int{slave, slave, slave}, append(s.closes, slave)
	if err := unix.Fchown(slave, int(user.UID), -1); err != nil {
		return err
	}
	return setSize(s.terminal, size)
}

func (s *streams) closeChild() {
	for _, fd := range s.closes {
		if fd >= 0 {
			_ = unix.Close(fd)
		}
	}
	s.closes = nil
}

func (s *streams) closeAll() {
	for _, f := range []*os.File{s.in, s.out, s.err, s.terminal} {
		if f != nil {
			_ = f.Close() // twice for a terminal: the second says so and does nothing
		}
	}
}

func setSize(terminal *os.File, size Size) error {
	conn, err := terminal.SyscallConn()
	if err != nil {
		return err
	}
	cerr := conn.Control(func(fd uintptr) {
		err = unix.IoctlSetWinsize(int(fd), unix.TIOCSWINSZ, &unix.Winsize{Col: size.Cols, Row: size.Rows})
	})
	return errors.Join(cerr, err)
}
