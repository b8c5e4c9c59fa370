package pyhost

import "path/filepath"

// Down implements stepfleet.Host.
func (h *Host) Down() []string {
	h.mu.Lock()
	defer h.mu.Unlock()
	return h.down
}

func (h *Host) setDown(locations []string) {
	h.mu.Lock()
	defer h.mu.Unlock()
	h.down = locations
}

// downIn returns the code locations that a template could not load. It tells of them in the order in
// which it was given them.
func (h *Host) downIn(loaded frame) []string {
	var down []string
	for i, l := range loaded.Locations {
		if !l.OK && i < len(h.cfg.Preload) {
			down = append(down, h.cfg.Preload[i].location())
		}
	}
	return down
}

// location is Dagster's name of the code location, as tasks have it.
func (p Preload) location() string {
	name := p.Module
	if p.File != "" {
		name = filepath.Base(p.File)
	}
	switch {
	case p.Location != "":
		return p.Location
	case p.Attribute != "":
		return name + ":" + p.Attribute
	}
	return name
}
