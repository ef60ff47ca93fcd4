package vm

import (
	"debug/elf"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
)

// libraryFolders are where Debian's loader looks.
var libraryFolders = []string{"/usr/lib/x86_64-linux-gnu", "/usr/lib", "/usr/local/lib"}

// closure is the files that programs need: themselves, their loader and their libraries.
type closure struct {
	seen  map[string]bool
	files []string
}

// addTool adds a program by name or path.
func (c *closure) addTool(name string) error {
	path, err := exec.LookPath(name)
	if err != nil {
		return fmt.Errorf("tool %s: %w (deploy/setup --dev installs what tests need)", name, err)
	}
	return c.add(path)
}

// add adds an ELF file, by the path under which it is looked for, and what it is linked with.
func (c *closure) add(path string) error {
	path, err := canonical(path)
	if err != nil {
		return err
	}
	if c.seen[path] {
		return nil
	}
	if c.seen == nil {
		c.seen = map[string]bool{}
	}
	c.seen[path] = true
	c.files = append(c.files, path)
	needed, err := linked(path)
	if err != nil {
		return fmt.Errorf("%s: %w", path, err)
	}
	for _, name := range needed.names {
		found, err := library(name, needed.folders)
		if err != nil {
			return fmt.Errorf("%s: %w", path, err)
		}
		if err := c.add(found); err != nil {
			return err
		}
	}
	return nil
}

// canonical resolves links of the folder (/lib is /usr/lib) and keeps the file's own name.
func canonical(path string) (string, error) {
	dir, err := filepath.EvalSymlinks(filepath.Dir(path))
	if err != nil {
		return "", err
	}
	return filepath.Join(dir, filepath.Base(path)), nil
}

// links are what an ELF file names: its loader, by path, its libraries, and folders for them.
type links struct{ names, folders []string }

func linked(path string) (links, error) {
	f, err := elf.Open(path)
	if err != nil {
		return links{}, err
	}
	defer f.Close()
	var out links
	if out.names, err = f.ImportedLibraries(); err != nil {
		return links{}, nil // no dynamic section: a static program
	}
	for _, p := range f.Progs {
		if p.Type == elf.PT_INTERP {
			name := make([]byte, p.Filesz-1) // without the zero at its end
			if _, err := p.ReadAt(name, 0); err != nil {
				return links{}, err
			}
			out.names = append(out.names, string(name))
		}
	}
	for _, tag := range []elf.DynTag{elf.DT_RPATH, elf.DT_RUNPATH} {
		list, _ := f.DynString(tag)
		for _, entry := range list {
			entry = strings.ReplaceAll(entry, "$ORIGIN", filepath.Dir(path))
			out.folders = append(out.folders, filepath.SplitList(entry)...)
		}
	}
	return out, nil
}

func library(name string, folders []string) (string, error) {
	if filepath.IsAbs(name) {
		return name, nil
	}
	for _, dir := range append(folders, libraryFolders...) {
		path := filepath.Join(dir, name)
		if _, err := os.Stat(path); err == nil {
			return path, nil
		}
	}
	return "", fmt.Errorf("library %s is not in %v", name, libraryFolders)
}
