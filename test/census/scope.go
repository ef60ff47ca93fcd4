package census

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"github.com/roosthq/roost/internal/host/uids"
)

// RunVariable marks the processes of one test run.
const RunVariable = "ROOST_TEST_RUN"

// Scope says what belongs to a run; see the package comment.
type Scope struct {
	// Names: a thing belongs to the run when its name contains one of them.
	Names []string
	// Arguments: names are looked for in the arguments of processes, too. Not for a whole
	// machine, where every compiler run on this project has its name in them.
	Arguments bool
	// Links also belong to it when their name matches.
	Links *regexp.Regexp
	// Run is the value of RunVariable in the run's processes; "" for none.
	Run string
	// Commands are prefixes of the names of its programs.
	Commands []string
	// Root is a process whose descendants belong to it; 0 for none.
	Root int
	// FirstUID and LastUID bound uids that only the run uses; 0 and 0 for none.
	FirstUID, LastUID int
	// Temp are folders where entries whose names begin with one of TempPrefixes belong to it,
	// with everything that stands on files below them.
	Temp, TempPrefixes []string
	// Host includes the host's addresses, routes and forwarding switches.
	Host bool
	// Self includes this process's descriptors and goroutines.
	Self bool
}

// hostLink is how package network names the host's end of a slot's link.
var hostLink = regexp.MustCompile(`^r[a-z0-9]{4}h[0-9]+$`)

// Machine is the scope of a whole run of all tests; run is its RunVariable, or "".
func Machine(run string) Scope {
	return Scope{
		Names:        []string{"roost"},
		Links:        hostLink,
		Run:          run,
		Commands:     []string{"qemu", "roost", "runsc"},
		FirstUID:     uids.First,
		LastUID:      uids.Last - 1,
		Temp:         []string{os.TempDir(), "/run", "/dev/shm"},
		TempPrefixes: []string{"roost", "Test"},
		Host:         true,
	}
}

// Own is the scope of this test binary.
func Own(names ...string) Scope {
	return Scope{Names: names, Arguments: true, Root: os.Getpid(), Self: true, Temp: []string{os.TempDir()}, TempPrefixes: names}
}

// named says whether any of the texts contains one of the scope's names.
func (s Scope) named(texts ...string) bool {
	for _, text := range texts {
		for _, name := range s.Names {
			if strings.Contains(text, name) {
				return true
			}
		}
	}
	return false
}

// ours says whether a path belongs to the run.
func (s Scope) ours(path string) bool {
	if s.named(path) {
		return true
	}
	for _, root := range s.Temp {
		rel, err := filepath.Rel(root, path)
		if err == nil && !strings.HasPrefix(rel, "..") && hasPrefix(rel, s.TempPrefixes) {
			return true
		}
	}
	return false
}

func hasPrefix(name string, prefixes []string) bool {
	for _, p := range prefixes {
		if strings.HasPrefix(name, p) {
			return true
		}
	}
	return false
}
