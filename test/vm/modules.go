package vm

import (
	"debug/elf"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/roosthq/roost/test/vm/guest"
)

// modules are the files of a kernel package's modules, by the kernel's name of each.
type modules struct {
	files   map[string]string
	builtin map[string]bool
}

// openModules reads a folder lib/modules/VERSION.
func openModules(dir string) (*modules, error) {
	m := &modules{files: map[string]string{}, builtin: map[string]bool{}}
	text, err := os.ReadFile(filepath.Join(dir, "modules.builtin"))
	if err != nil {
		return nil, err
	}
	for line := range strings.FieldsSeq(string(text)) {
		m.builtin[moduleName(line)] = true
	}
	return m, filepath.WalkDir(dir, func(path string, _ fs.DirEntry, err error) error {
		if err == nil && strings.HasSuffix(path, ".ko") {
			m.files[moduleName(path)] = path
		}
		return err
	})
}

// moduleName is the kernel's: its files mix dashes and underscores.
func moduleName(file string) string {
	return strings.ReplaceAll(strings.TrimSuffix(filepath.Base(file), ".ko"), "-", "_")
}

// order gives the wanted modules and all they depend on, each after its dependencies. The
// package has no modules.dep (depmod makes it where a kernel is installed), so the modules are asked.
func (m *modules) order(wanted []string) ([]guest.Module, error) {
	var out []guest.Module
	seen := map[string]bool{}
	var visit func(string) error
	visit = func(name string) error {
		if seen[name] || m.builtin[name] {
			return nil
		}
		seen[name] = true
		depends, err := m.depends(name)
		if err != nil {
			return fmt.Errorf("kernel module %s: %w", name, err)
		}
		for _, d := range depends {
			if err := visit(moduleName(d)); err != nil {
				return err
			}
		}
		out = append(out, guest.Module{Name: name, Params: parameters[name]})
		return nil
	}
	for _, name := range wanted {
		if err := visit(moduleName(name)); err != nil {
			return nil, err
		}
	}
	return out, nil
}

// depends reads "depends=a,b" from a module's .modinfo section.
func (m *modules) depends(name string) ([]string, error) {
	file, ok := m.files[name]
	if !ok {
		return nil, fmt.Errorf("neither a module nor built in")
	}
	f, err := elf.Open(file)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("%s has no .modinfo", file)
	}
	data, err := section.Data()
	if err != nil {
		return nil, err
	}
	for entry := range strings.SplitSeq(string(data), "\x00") {
		if list, ok := strings.CutPrefix(entry, "depends="); ok && list != "" {
			return strings.Split(list, ","), nil
		}
	}
	return nil, nil
}
