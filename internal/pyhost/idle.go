package pyhost

// Idle returns how many processes wait ready for a task.
func (h *Host) Idle() int {
	h.mu.Lock()
	defer h.mu.Unlock()
	if h.template == nil {
		return 0
	}
	return len(h.template.idle)
}
