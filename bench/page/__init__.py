"""How fast a long run opens on the page, and what a page that is open costs."""
